"""Convert images to model inputs, with Pillow and numpy only.

The result equals that of timm's evaluation transform on PIL images, bit for bit: torchvision's ``Resize`` and
``CenterCrop`` with their rounding, ``ToTensor`` and ``Normalize`` in float32. Like timm, it ignores the orientation in
a file's EXIF data.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dyce_runtime.bundle.manifest import Preprocessing
from dyce_runtime.errors import RuntimeInputError
from dyce_runtime.inputs.decoding import NARROWEST, Picture, decode, read_all
from dyce_runtime.inputs.geometry import crop_start, size_after_resize

if TYPE_CHECKING:
    from PIL import Image

Images: TypeAlias = "Picture | Iterable[Picture]"


def preprocess(images: Images, spec: Preprocessing) -> NDArray[np.float32]:
    """Make the input of a model.

    Files and PIL images are converted to ``L``, ``LA``, ``RGB`` or ``RGBA``, by the number of channels of the model.
    Alpha is dropped for greyscale and RGB, as in timm; a model that takes 2 or 4 channels needs images with alpha,
    which Pillow resizes with colours weighted by alpha. The channels of an array are resized independently.

    Args:
        images: one image or several. An image is a path, the bytes of a file, a file that is open in binary mode, a PIL
            image or an array: (H, W), (H, W, 1) or (H, W, 3) for models that take greyscale or RGB, converted if it is
            the other of the two; (H, W, C) for all other models. Arrays are uint8, or floats (of 16, 32 or 64 bits) on
            the scale 0 to 1; if mean is 0 and std 1, so that nothing is normalised, floats may be normalised already.
            One array may hold several images: (N, H, W, C), and (N, H, W) for a model that takes greyscale.
        spec: the parameters of the transform, from the manifest.

    Returns:
        (N, C, H, W) float32, where C is the length of ``spec.mean``.

    Raises:
        RuntimeInputError: there are no images, a value is not an image, or an array does not fit.
        DataError: a file or an image cannot be read; the message names it.
    """
    pictures = listed(images, spec)
    if not pictures:
        raise RuntimeInputError("found no pictures, expected at least one")
    channels = len(spec.mean)
    if channels == 0 or len(spec.std) != channels:
        raise RuntimeInputError(
            f"found {channels} means and {len(spec.std)} standard deviations, expected one of each per channel"
        )
    mean, std = (np.asarray(values, np.float32).reshape(-1, 1, 1) for values in (spec.mean, spec.std))
    batch = np.empty((len(pictures), channels, *spec.crop), np.float32)
    for index, (picture, planes) in enumerate(zip(pictures, batch, strict=True)):
        first = 0
        for layer in decode(picture, spec, f"picture {index}"):
            bands = len(layer.getbands())
            cut = _center_crop(_resize(layer, spec), spec, spec.mean[first : first + bands])
            pixels = np.asarray(cut).reshape(*spec.crop, bands).transpose(2, 0, 1)
            white = 1 if layer.mode == "F" else 255
            np.divide(pixels, white, out=planes[first : first + bands], dtype=np.float32)
            first += bands
        planes -= mean
        planes /= std
    return batch


def listed(images: Any, spec: Preprocessing) -> list[Any]:
    """Return the argument of :func:`preprocess` as a list of images. Open files are read, which is possible only once.

    Raises:
        RuntimeInputError: an open file cannot be read, or does not return bytes.
    """
    if isinstance(images, np.ndarray):
        grey = images.ndim == 3 and len(spec.mean) == 1 and images.shape[2] >= NARROWEST
        return list(images) if images.ndim == 4 or grey else [images]
    # Several types of a single image are iterable.
    one = isinstance(images, (str, os.PathLike, bytes, bytearray, memoryview, Mapping))
    one = one or hasattr(images, "read") or hasattr(images, "__array__") or not isinstance(images, Iterable)
    pictures = [images] if one else images
    return [
        read_all(picture, f"picture {index}") if hasattr(picture, "read") else picture
        for index, picture in enumerate(pictures)
    ]


def _resize(image: Image.Image, spec: Preprocessing) -> Image.Image:
    from PIL import Image

    try:
        resampling = Image.Resampling[spec.interpolation.upper()]
    except KeyError:
        known = ", ".join(kind.name.lower() for kind in Image.Resampling)
        raise RuntimeInputError(f"found interpolation {spec.interpolation!r}, expected one of {known}") from None
    return image.resize(size_after_resize(image.width, image.height, spec), resampling)


def _center_crop(image: Image.Image, spec: Preprocessing, mean: tuple[float, ...]) -> Image.Image:
    """Crop the centre. A smaller image is padded with the mean if ``fit`` is ``contain``, otherwise with 0."""
    from PIL import Image

    height, width = spec.crop
    left, top = crop_start(image.width, width), crop_start(image.height, height)
    if spec.fit != "contain" or (image.width >= width and image.height >= height):
        return image.crop((left, top, left + width, top + height))
    fill = mean if image.mode == "F" else tuple(round(255 * value) for value in mean)
    canvas = Image.new(image.mode, (width, height), fill if len(fill) > 1 else fill[0])
    canvas.paste(image, (-left, -top))
    return canvas
