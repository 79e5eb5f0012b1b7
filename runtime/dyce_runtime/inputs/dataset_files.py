"""Read images and labels from one file or a set of files: ``.npz``, MNIST-style IDX, scikit-learn's digits.

Every reader raises DataError if a file cannot be read or does not hold images.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dyce_runtime.errors import DataError
from dyce_runtime.inputs.decoding import NARROWEST, open_file

_IDX_PARTS = {"train": "train", "test": "t10k"}


class Arrays(NamedTuple):
    """The result of a reader; the fields are those of :class:`dyce_runtime.inputs.datasets.Dataset`."""

    source: str
    items: NDArray[np.uint8] | NDArray[np.floating[Any]]
    labels: NDArray[np.int64] | None = None
    class_names: tuple[str, ...] | None = None


def read_npz(path: Path) -> Arrays:
    """Read the arrays ``images`` or ``x`` and, if the file has them, ``labels`` or ``y``."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files if name in ("images", "x", "labels", "y")}
            found = ", ".join(archive.files)
    except Exception as error:  # zipfile, zlib and numpy each raise exception types of their own
        objects = "store pictures of one size as one array, numpy.stack(pictures), and labels as class indices"
        hint = objects if "Object arrays" in str(error) else ""
        raise DataError(f"{path}: cannot be read as .npz ({error})", hint=hint) from error
    images, labels = arrays.get("images", arrays.get("x")), arrays.get("labels", arrays.get("y"))
    if images is None:
        raise DataError(f"{path}: found the arrays {found}", hint="name them images and labels, or x and y")
    return _checked(str(path), images, labels)


def _checked(source: str, images: NDArray[Any], labels: NDArray[Any] | None) -> Arrays:
    _check_images(images, f"{source}: found images {images.dtype} of shape {images.shape}")
    if labels is None:
        return Arrays(source, images)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{source}: found labels {labels.dtype} of shape {labels.shape}, expected integers (N,)",
            hint="store class indices, not one-hot vectors or names: labels.argmax(1), labels.astype(int)",
        )
    return Arrays(source, images, labels.astype(np.int64))


def _check_images(images: NDArray[Any], found: str) -> None:
    """Raise DataError unless the array may hold images. Whether they fit a model is checked later."""
    floats = np.issubdtype(images.dtype, np.floating)
    if images.dtype != np.uint8 and not (floats and np.isfinite(images).all()):
        raise DataError(
            f"{found}, expected uint8, 0 to 255, or finite floats, 0 to 1",
            hint="store the pictures before any normalisation; divide what goes to 65535 by that",
        )
    if images.ndim not in (3, 4):
        raise DataError(f"{found}, expected (N, H, W) or (N, H, W, C)", hint="images[None] is one picture")
    if images.ndim == 4 and images.shape[1] < NARROWEST <= images.shape[3]:
        hint = "images.transpose(0, 2, 3, 1) moves the channels to the end"
        raise DataError(f"{found}, expected (N, H, W) or (N, H, W, C)", hint=hint)
    if images.ndim == 3 and images.shape[2] < NARROWEST:
        hint = "images[None] is one picture; images[..., None] are grey ones that are as narrow as that"
        raise DataError(f"{found}, expected (N, H, W) or (N, H, W, C)", hint=hint)


def find_idx(folder: Path) -> Path | None:
    """Return the folder with MNIST-style files: this one, or a subfolder in which torchvision stores them; or None."""
    for candidate in (folder, folder / "raw", *sorted(folder.glob("*/raw"))):
        if any(_idx_file(candidate, prefix, "images?idx3") for prefix in _IDX_PARTS.values()):
            return candidate
    return None


def _idx_file(folder: Path, prefix: str, kind: str) -> Path | None:
    """Find a file such as ``train-images-idx3-ubyte``, preferring it to its gzipped copy; None if there is none.

    ``kind`` is a glob pattern: some copies have a dot instead of the second hyphen.
    """
    found = [file for ending in ("", ".gz") for file in sorted(folder.glob(f"{prefix}-{kind}-ubyte{ending}"))]
    return found[0] if found else None


def read_idx(folder: Path, part: str | None) -> Arrays:
    """Read one part of MNIST-style files, ``train`` or ``test``; None takes the first that exists."""
    files = {name: _idx_file(folder, prefix, "images?idx3") for name, prefix in _IDX_PARTS.items()}
    there = {name: file for name, file in files.items() if file}
    part = next(iter(there)) if part is None else part
    if part not in there:
        raise DataError(f"{folder}: has no part {part!r}", hint=f"write {folder}#{' or #'.join(there)}")
    labels = _idx_file(folder, _IDX_PARTS[part], "labels?idx1")
    return _checked(f"{folder}#{part}", _idx_array(there[part], 3), _idx_array(labels, 1) if labels else None)


def _idx_array(file: Path, axes: int) -> NDArray[np.uint8]:
    """Read an IDX file: 0, 0, 8 (unsigned bytes), number of axes, their lengths (big-endian), then the bytes."""
    try:
        with open_file(file) as stored:
            data = gzip.decompress(stored.read()) if file.suffix == ".gz" else stored.read()
    except (OSError, EOFError, zlib.error, MemoryError) as error:
        raise DataError(f"{file}: cannot be read ({error})") from error
    start = 4 + 4 * axes
    shape = tuple(int(length) for length in np.frombuffer(data[4:start].ljust(4 * axes, b"\0"), ">u4"))
    if data[:4] != bytes((0, 0, 8, axes)) or len(data) - start != math.prod(shape):
        raise DataError(
            f"{file}: not an IDX file of unsigned bytes with {axes} axes, or not complete",
            hint="fetch it again; what holds other numbers can be given as .npz",
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def read_digits(part: str | None) -> Arrays:
    """Load scikit-learn's handwritten digits: all (None), or the part ``train`` or ``test`` of a fixed division."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataError("digits: needs scikit-learn", hint="pip install 'dyce-export[demo]'") from None
    digits = load_digits()
    # numpy guarantees that the stream of RandomState never changes, unlike that of newer generators.
    order = np.random.RandomState(0).permutation(len(digits.target))
    test = np.arange(len(order)) % 4 == 0
    chosen = {None: order, "train": order[~test], "test": order[test]}
    if part not in chosen:
        raise DataError(f"digits: has no part {part!r}", hint="write digits, digits#train or digits#test")
    indices = np.sort(chosen[part])
    images = np.rint(digits.images[indices] * 255 / 16).astype(np.uint8)
    names = tuple(str(name) for name in digits.target_names)
    source = "digits" if part is None else f"digits#{part}"
    return Arrays(source, images, digits.target[indices].astype(np.int64), names)
