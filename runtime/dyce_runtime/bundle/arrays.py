"""Arrays in files (``.npz``), read without unpickling anything."""

from __future__ import annotations

import zipfile
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dyce_runtime.bundle.reader import SPLITS, Bundle
from dyce_runtime.errors import BundleError, DyceError
from dyce_runtime.json_files import check_regular

# Bytes of all arrays of a file, and how many there are; records of a million samples and a dozen heads have less.
_LARGEST, _MOST_ARRAYS = 1 << 30, 1000


def read_arrays(path: Path, what: str, *, error: type[DyceError] = BundleError) -> dict[str, npt.NDArray[Any]]:
    """Every array of a file by its name, of whatever type and shape but never of objects.

    Nothing is allocated before the headers say how much, and the file as a whole holds at most a gigabyte.

    Args:
        what: the file holds, for the message.
        error: what is raised if the file is missing, damaged, something else, too large, or holds pickled objects.
    """
    try:
        check_regular(path)
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if len(entries) > _MOST_ARRAYS or sum(entry.file_size for entry in entries) > _LARGEST:
                raise ValueError(f"it holds more than {_LARGEST >> 20} MiB, or more than {_MOST_ARRAYS} arrays")
            return {entry.filename.removesuffix(".npy"): _read_array(archive, entry) for entry in entries}
    except Exception as reason:  # zip, zlib and numpy's headers, which may claim any size, each raise their own kinds
        told = reason.strerror if isinstance(reason, OSError) and reason.strerror else str(reason)
        first = (told.splitlines() or [type(reason).__name__])[0]
        raise error(f"{path} does not hold {what}: {first}", hint="Copy or make the file again.") from reason


def _read_array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> npt.NDArray[Any]:
    """One array, once its header fits the size of its entry."""
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        if dtype.hasobject or prod(shape, start=dtype.itemsize) > entry.file_size or min(shape, default=0) < 0:
            raise ValueError(f"the header of {entry.filename} does not fit its content")
    with archive.open(entry) as file:
        found: npt.NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
        return found


def read_splits(bundle: Bundle) -> dict[str, npt.NDArray[np.uint64]]:
    """By split, the hashes of the pictures in it, (N,) as in ``Dataset.hashes``; none if the bundle was made without.

    Raises:
        BundleError: the file is damaged or holds something else.
    """
    path = bundle.file(SPLITS)
    if not path.is_file():
        return {}
    splits = read_arrays(path, "the splits of the pictures")
    for name, hashes in splits.items():
        if hashes.dtype != np.uint64 or hashes.ndim != 1:
            raise BundleError(
                f"{path}: split {name} is {hashes.dtype} of shape {hashes.shape}; expected uint64 of shape (pictures,)",
                hint="Export the bundle again.",
            )
    return splits
