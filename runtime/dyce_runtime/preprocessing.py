"""From pictures to model inputs, with Pillow and numpy only.

The arithmetic is that of timm's evaluation transform on PIL images, bit for bit: torchvision's ``Resize`` and
``CenterCrop`` with their rounding, ``ToTensor`` and ``Normalize`` in float32. Like timm, it ignores the
orientation that a camera wrote into a file's EXIF data.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dyce_runtime.errors import DataError, RuntimeInputError
from dyce_runtime.manifest import Preprocessing

if TYPE_CHECKING:
    from PIL import Image

Picture: TypeAlias = "str | Path | Image.Image | NDArray[np.uint8]"
Images: TypeAlias = "Picture | Iterable[Picture]"

_MODES = {1: "L", 3: "RGB"}


def preprocess(images: Images, spec: Preprocessing) -> NDArray[np.float32]:
    """Make the input of a model, (N, C, H, W) float32, where C is the length of ``spec.mean``.

    Args:
        images: one picture or several. A picture is a path, a PIL image or a uint8 array of shape (H, W),
            (H, W, 1) or (H, W, 3). One uint8 array may hold several: (N, H, W) or (N, H, W, C). A single array
            with three axes is one picture if the last axis is 1 or 3, otherwise N grey pictures.
        spec: the numbers of the transform, from the manifest.

    Raises:
        RuntimeInputError: nothing to do, or an array's dtype, rank or number of channels is not a picture's.
        DataError: a file cannot be read; the message names it.
    """
    pictures = listed(images, spec)
    if not pictures:
        raise RuntimeInputError("found no pictures, expected at least one")
    channels = len(spec.mean)
    if channels not in _MODES or len(spec.std) != channels:
        raise RuntimeInputError(
            f"found {channels} means and {len(spec.std)} standard deviations, expected 1 (grey) or 3 (RGB)",
            hint="pass preprocessed float32 (N, C, H, W) straight to the session",
        )
    mean, std = (np.asarray(values, np.float32).reshape(-1, 1, 1) for values in (spec.mean, spec.std))
    batch = np.empty((len(pictures), channels, *spec.crop), np.float32)
    for index, (picture, planes) in enumerate(zip(pictures, batch, strict=True)):
        image = _center_crop(_resize(_open(picture, _MODES[channels], index), spec), spec)
        pixels = np.asarray(image).reshape(*spec.crop, channels)
        np.divide(pixels.transpose(2, 0, 1), 255, out=planes, dtype=np.float32)
        planes -= mean
        planes /= std
    return batch


def listed(images: Any, spec: Preprocessing) -> list[Any]:
    """Tell one picture from several; only arrays are ambiguous."""
    if isinstance(images, np.ndarray):
        if images.ndim == 3 and len(images) == 3 == len(spec.mean) and images.shape[2] not in _MODES:
            raise RuntimeInputError(
                f"found an array of shape {images.shape}: expected (H, W, 3), channels last",
                hint="array.transpose(1, 2, 0) moves the channels; three grey pictures go into a list",
            )
        several = images.ndim == 4 or (images.ndim == 3 and images.shape[2] not in _MODES)
        return list(images) if several else [images]
    one = isinstance(images, str) or not isinstance(images, Iterable)  # neither a Path nor a PIL image can be iterated
    return [images] if one else list(images)


def _open(picture: Any, mode: str, index: int) -> Image.Image:
    """Open, decode and convert one picture; the message of an error says which of several it was."""
    from PIL import Image

    if isinstance(picture, np.ndarray):
        _check_array(picture, index)
        return Image.fromarray(picture[:, :, 0] if picture.shape[2:] == (1,) else picture).convert(mode)
    if isinstance(picture, Image.Image):
        if 0 in picture.size:
            raise RuntimeInputError(f"picture {index} has no pixels: its size is {picture.size}")
        return picture.convert(mode)
    if not isinstance(picture, (str, Path)):
        raise RuntimeInputError(
            f"picture {index} is a {type(picture).__name__}: expected a path, a PIL image or a uint8 array"
        )
    try:
        with Image.open(picture) as image:
            return image.convert(mode)
    except FileNotFoundError:
        raise DataError(f"{picture}: no such file") from None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more
        raise DataError(
            f"{picture}: cannot be read as a picture ({error})", hint="remove the file or replace it"
        ) from error


def _check_array(array: NDArray[Any], index: int) -> None:
    found = f"picture {index} is a {array.dtype} array of shape {array.shape}"
    if array.dtype != np.uint8:
        floats = np.issubdtype(array.dtype, np.floating)
        raise RuntimeInputError(
            f"{found}: expected uint8 HWC",
            hint="pass preprocessed float32 straight to the session" if floats else "convert it to uint8, 0 to 255",
        )
    if array.ndim not in (2, 3) or array.size == 0:
        raise RuntimeInputError(f"{found}: expected (H, W), (H, W, 1) or (H, W, 3)")
    if array.ndim == 3 and array.shape[2] not in _MODES:
        first = array.shape[0] in _MODES
        raise RuntimeInputError(
            f"{found}: expected 1 or 3 channels, last",
            hint="array.transpose(1, 2, 0) moves the channels" if first else "drop other channels, such as alpha",
        )


def _resize(image: Image.Image, spec: Preprocessing) -> Image.Image:
    from PIL import Image

    try:
        resampling = Image.Resampling[spec.interpolation.upper()]
    except KeyError:
        known = ", ".join(kind.name.lower() for kind in Image.Resampling)
        raise RuntimeInputError(f"found interpolation {spec.interpolation!r}, expected one of {known}") from None
    return image.resize(_size_after_resize(image.width, image.height, spec), resampling)


def _size_after_resize(width: int, height: int, spec: Preprocessing) -> tuple[int, int]:
    """(width, height). The roundings differ from one transform of torchvision's and timm's to the next."""
    if not isinstance(spec.resize, tuple):
        shorter = min(width, height)
        # torchvision truncates the longer edge; the order of operations matters for the last bit.
        return int(spec.resize * width / shorter), int(spec.resize * height / shorter)
    target_height, target_width = spec.resize
    if spec.fit == "stretch":
        return target_width, target_height
    ratios = height / target_height, width / target_width
    ratio = max(ratios) if spec.fit == "contain" else min(ratios)
    return max(1, round(width / ratio)), max(1, round(height / ratio))


def _center_crop(image: Image.Image, spec: Preprocessing) -> Image.Image:
    """Cut (height, width) out of the middle; around a smaller image stands the mean if it was contained, else 0."""
    from PIL import Image

    height, width = spec.crop
    left, top = _crop_start(image.width, width), _crop_start(image.height, height)
    if spec.fit != "contain" or (image.width >= width and image.height >= height):
        return image.crop((left, top, left + width, top + height))
    mean = tuple(round(255 * value) for value in spec.mean)
    canvas = Image.new(image.mode, (width, height), mean if len(mean) > 1 else mean[0])
    canvas.paste(image, (-left, -top))
    return canvas


def _crop_start(length: int, crop: int) -> int:
    """Where torchvision's CenterCrop starts: it rounds half to even when it cuts, down when it pads."""
    return round((length - crop) / 2) if length >= crop else -((crop - length) // 2)
