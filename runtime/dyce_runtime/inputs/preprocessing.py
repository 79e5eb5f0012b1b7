"""From pictures to model inputs, with Pillow and numpy only.

The arithmetic is that of timm's evaluation transform on PIL images, bit for bit: torchvision's ``Resize`` and
``CenterCrop`` with their rounding, ``ToTensor`` and ``Normalize`` in float32. Like timm, it ignores the
orientation that a camera wrote into a file's EXIF data.
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
    """Make the input of a model, (N, C, H, W) float32, where C is the length of ``spec.mean``.

    Args:
        images: one picture or several. A picture is a path, the bytes of a file, a file that is open in binary mode, a
            PIL image or an array: (H, W), (H, W, 1) or (H, W, 3) for models that take grey or RGB, converted where it
            is the other; (H, W, C) for all others. Arrays are uint8, or floats (of 16, 32 or 64 bits) on the scale 0 to
            1; where mean is 0 and std 1, which changes nothing, floats may be normalised already. One array may hold
            several pictures: (N, H, W, C), and (N, H, W) for a model that takes grey.
        spec: the numbers of the transform, from the manifest.

    Files and PIL images are converted to ``L``, ``LA``, ``RGB`` or ``RGBA`` by the number of channels. Alpha is dropped
    for grey and RGB, as in timm; a model that takes 2 or 4 channels needs pictures with alpha, which are resized as
    Pillow does (colours weighted by alpha), while channels of an array do not touch each other.

    Raises:
        RuntimeInputError: nothing to do, or a value that is no picture, or an array that does not fit.
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
    """Tell one picture from several, and read files that are open, which can be read only once.

    Raises:
        RuntimeInputError: an open file gives no bytes.
    """
    if isinstance(images, np.ndarray):
        grey = images.ndim == 3 and len(spec.mean) == 1 and images.shape[2] >= NARROWEST
        return list(images) if images.ndim == 4 or grey else [images]
    # A PIL image cannot be iterated, but much else can that is one thing.
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
    """Cut (height, width) out of the middle; around a smaller image stands the mean if it was contained, else 0."""
    from PIL import Image

    height, width = spec.crop
    left, top = crop_start(image.width, width), crop_start(image.height, height)
    if spec.fit != "contain" or (image.width >= width and image.height >= height):
        return image.crop((left, top, left + width, top + height))
    fill = mean if image.mode == "F" else tuple(round(255 * value) for value in mean)
    canvas = Image.new(image.mode, (width, height), fill if len(fill) > 1 else fill[0])
    canvas.paste(image, (-left, -top))
    return canvas
