"""Decode images from files, bytes, PIL images and arrays, and check them.

A decoded image is a list of layers: PIL images of the same size whose bands together are the channels that the model
takes. Usually there is one layer, ``L`` or ``RGB``. Arrays with other numbers of channels, and arrays of floats, have
one layer per channel: Pillow interprets a fourth band as alpha, and does not support floats with several bands.
"""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dyce_runtime.bundle.manifest import Preprocessing
from dyce_runtime.errors import DataError, RuntimeInputError
from dyce_runtime.inputs.geometry import check_size

if TYPE_CHECKING:
    from PIL import Image

Picture: TypeAlias = "str | Path | bytes | BinaryIO | Image.Image | NDArray[np.uint8] | NDArray[np.floating[Any]]"

# The formats that are accepted. Pillow supports more, some of them by starting other programs (EPS: Ghostscript).
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM", "GIF")
# Pillow's mode for the number of channels that a model takes. The last band of LA and RGBA is alpha.
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
# An axis shorter than this holds channels rather than pixels.
NARROWEST = 8
# The most bytes of an open file: no image that may be decoded is larger.
_MOST_BYTES = 1 << 30
# Floats on the scale 0 to 1 may exceed it by this rounding error.
_ROUNDING = 1e-3
# The largest absolute value of floats if the model does not normalise (mean 0, std 1). Normalised pixels are far below.
_MOST_AS_THEY_ARE = 64.0
# The weights with which Pillow converts RGB to greyscale: ITU-R 601-2.
_LUMA = np.array((0.299, 0.587, 0.114), np.float32)


def decode(picture: Any, spec: Preprocessing, name: str, *, reduced: bool = False) -> list[Image.Image]:
    """Decode an image and convert it to the channels that a model takes.

    Alpha is dropped for models that take 1 or 3 channels, so that transparent pixels show their colour, as in timm and
    torchvision. Of a file with several frames, the first is used.

    Args:
        picture: a path (``.npy`` for an array), the bytes of a file, a PIL image or an array (H, W[, C]).
        spec: preprocessing of the model, which determines the number of channels and the scale of floats.
        name: the name in messages of an image that has no path.
        reduced: whether to decode JPEG at reduced size, which is faster and still detects damaged files.

    Returns:
        the layers of the image; see the module's docstring.

    Raises:
        RuntimeInputError: the value is not an image, or an array does not fit.
        DataError: a file or an image cannot be read or does not fit.
    """
    from PIL import Image

    if isinstance(picture, np.ndarray):
        return _layers(picture, spec, name)
    if isinstance(picture, Image.Image):
        if 0 in picture.size:
            raise RuntimeInputError(f"{name} has no pixels: its size is {picture.size}")
        return [_converted(picture, spec, name, reduced=False)]
    if isinstance(picture, (bytes, bytearray, memoryview)):
        return [_read_image(io.BytesIO(picture), spec, f"{name}, {len(picture)} bytes,", reduced=reduced)]
    if not isinstance(picture, (str, os.PathLike)):
        raise RuntimeInputError(
            f"{name} is a {type(picture).__name__}: expected a path, the bytes of a file, a PIL image or an array "
            "(H, W, C) of uint8, or of floats from 0 to 1",
            hint="numpy.asarray(...) makes an array of a tensor; channels go last" if _is_numeric(picture) else "",
        )
    if is_array_file(picture):
        try:
            return _layers(read_array(picture), spec, str(picture))
        except RuntimeInputError as error:
            raise DataError(error.message, hint=error.hint) from None
    with open_file(picture) as file:
        return [_read_image(file, spec, str(picture), reduced=reduced)]


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a data file for reading. Raises DataError if it does not exist, or is a folder, a pipe or a device."""
    hint = "fetch it first, and pass its bytes" if "://" in str(path) else ""
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            kind = "is a folder" if stat.S_ISDIR(mode) else "is a pipe, a socket or a device"
            raise DataError(f"{path}: {kind}; expected a file")
        return open(path, "rb")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file", hint=hint) from None
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


def read_all(file: Any, name: str) -> bytes:
    """Read an open file, from its start if it is seekable.

    Raises:
        RuntimeInputError: the file cannot be read, does not return bytes, or is larger than 1 GiB.
    """
    try:
        if file.seekable():
            file.seek(0)
        content = file.read(_MOST_BYTES + 1)
    except Exception as error:  # whatever the caller's object raises
        raise RuntimeInputError(f"{name} cannot be read from a {type(file).__name__} ({error})") from error
    if not isinstance(content, bytes):
        raise RuntimeInputError(
            f"{name} is a {type(file).__name__} that gives {type(content).__name__}; expected bytes",
            hint="open it in binary mode, and await what is asynchronous",
        )
    if len(content) > _MOST_BYTES:
        raise RuntimeInputError(f"{name} has over {_MOST_BYTES:,} bytes; expected a picture")
    return content


def _is_numeric(value: Any) -> bool:
    return hasattr(value, "__array__") or isinstance(value, (list, tuple))


# --- images ----------------------------------------------------------------------------------------------------------


def _read_image(file: BinaryIO, spec: Preprocessing, name: str, *, reduced: bool) -> Image.Image:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file, formats=FORMATS) as image:
            return _converted(image, spec, name, reduced=reduced)
    except DataError:
        raise
    except UnidentifiedImageError:
        raise _unreadable(name, f"it is no {', '.join(FORMATS)}") from None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more
        raise _unreadable(name, error) from error


def _converted(image: Image.Image, spec: Preprocessing, name: str, *, reduced: bool) -> Image.Image:
    """Load an image and convert it to the mode for the model. Raises DataError if it cannot be loaded or converted."""
    check_size(image.width, image.height, spec, name)
    channels = len(spec.mean)
    if image.mode.startswith("I") or image.mode == "F":
        raise DataError(
            f"{name}: has pixels of over 8 bits (mode {image.mode}), and nothing says how white they are; expected 8",
            hint="convert it as for the training, or make it an array of floats from 0 to 1 (.npy)",
        )
    if channels not in MODES:
        raise DataError(
            f"{name}: is an image (mode {image.mode}); expected {channels} channels",
            hint=f"store it as an array (H, W, {channels}), in an .npy or .npz file",
        )
    if channels in (2, 4) and not _has_alpha(image):
        raise DataError(
            f"{name}: is an image without alpha (mode {image.mode}); expected {channels} channels, {MODES[channels]}",
            hint=f"convert it as for the training: image.convert({MODES[channels]!r}) makes it opaque",
        )
    try:
        if reduced:
            image.draft(image.mode, (1, 1))
        image.load()
        return image if image.mode == MODES[channels] else image.convert(MODES[channels])
    except Exception as error:  # Pillow's decoders share no base class of exceptions, as above
        raise _unreadable(name, error) from error


def _has_alpha(image: Image.Image) -> bool:
    return "transparency" in image.info or image.mode in ("LA", "PA", "RGBA", "La", "RGBa")


def _unreadable(name: str, reason: object) -> DataError:
    return DataError(
        f"{name}: cannot be read as a picture ({str(reason) or type(reason).__name__})",
        hint="convert it to JPEG or PNG, or remove it",
    )


# --- arrays ----------------------------------------------------------------------------------------------------------


def is_array_file(path: str | os.PathLike[str]) -> bool:
    """Return whether a file holds an array, judging by its name."""
    return str(path).lower().endswith(".npy")


def read_array(path: str | os.PathLike[str]) -> NDArray[Any]:
    """Read the array in an ``.npy`` file. Raises DataError if it cannot be read, or holds objects."""
    with open_file(path) as file:
        try:
            array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
        except Exception as error:  # numpy parses the header as Python, which may raise many types
            raise DataError(f"{path}: cannot be read as an array ({error})", hint="write it with numpy.save") from error
    return array


def check_array(array: NDArray[Any], spec: Preprocessing, name: str) -> None:
    """Raise RuntimeInputError unless dtype, shape and values of an array (H, W[, C]) fit a model."""
    found, channels = f"{name} is a {array.dtype} array of shape {array.shape}", len(spec.mean)
    if array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
        hint = "array.astype(numpy.uint8) * 255" if array.dtype == bool else "convert it to uint8, 0 to 255"
        if array.dtype == np.uint16:
            hint = "divide by the value of white, such as 65535: floats from 0 to 1 are taken"
        raise RuntimeInputError(f"{found}: expected uint8 HWC, or floats from 0 to 1", hint=hint)
    if array.ndim not in (2, 3) or array.size == 0:
        shapes = "(H, W), (H, W, 1) or (H, W, 3)" if channels in (1, 3) else f"(H, W, {channels})"
        raise RuntimeInputError(f"{found}: expected {shapes}")
    own = array.shape[2] if array.ndim == 3 else 1
    if own != channels and not (own in (1, 3) and channels in (1, 3)):
        wanted = "1 or 3 channels" if channels in (1, 3) else f"{channels} channels"
        raise RuntimeInputError(f"{found}: expected {wanted}, channels last", hint=_channels_hint(array, channels))
    if array.dtype != np.uint8:
        check_scale(array, spec, found)


def _channels_hint(array: NDArray[Any], channels: int) -> str:
    if array.ndim == 3 and array.shape[0] in (1, 3, channels):
        return "array.transpose(1, 2, 0) moves the channels; several grey pictures go into a list"
    if array.ndim == 3 and array.shape[2] in (2, 4) and channels in (1, 3):
        return f"array[..., :{array.shape[2] - 1}] drops other channels, such as alpha"
    return "several grey pictures go into a list" if channels in (1, 3) else ""


def check_scale(array: NDArray[Any], spec: Preprocessing, found: str) -> None:
    """Raise RuntimeInputError unless floats are within 0 to 1, or within -64 to 64 if the model does not normalise."""
    lowest, highest = float(array.min()), float(array.max())
    if not any(spec.mean) and set(spec.std) == {1.0}:
        if lowest >= -_MOST_AS_THEY_ARE and highest <= _MOST_AS_THEY_ARE:
            return
    elif lowest >= -_ROUNDING and highest <= 1 + _ROUNDING:
        return
    raise RuntimeInputError(
        f"{found} with values from {lowest:.4g} to {highest:.4g}: expected uint8 HWC, or floats from 0 to 1",
        hint="Divide what goes to 255 by that. What is normalised already goes straight to the session; as data it "
        "needs a model that is exported with mean 0 and std 1",
    )


def _layers(array: NDArray[Any], spec: Preprocessing, name: str) -> list[Image.Image]:
    from PIL import Image

    check_array(array, spec, name)
    channels = len(spec.mean)
    check_size(array.shape[1], array.shape[0], spec, name)
    if array.dtype == np.uint8 and channels in (1, 3):
        plain = array[:, :, 0] if array.shape[2:] == (1,) else array
        return [Image.fromarray(plain).convert(MODES[channels])]
    planes = array.reshape(*array.shape[:2], -1)
    if array.dtype != np.uint8:
        planes = planes.astype(np.float32)
        if planes.shape[2] == 3 and channels == 1:
            planes = (planes @ _LUMA)[..., None]
        planes = np.broadcast_to(planes, (*planes.shape[:2], channels))
    return [Image.fromarray(np.ascontiguousarray(planes[..., channel])) for channel in range(channels)]
