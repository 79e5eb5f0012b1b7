"""Read arrays from ``.npz`` files without unpickling anything."""

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

# Limits of a file: the bytes of all its arrays, and their number. Records of a million samples and a dozen heads are
# below both.
_LARGEST, _MOST_ARRAYS = 1 << 30, 1000


def read_arrays(path: Path, what: str, *, error: type[DyceError] = BundleError) -> dict[str, npt.NDArray[Any]]:
    """Read every array of a file, of any shape and any dtype except object.

    The sizes in the headers are checked before anything is allocated.

    Args:
        path: the file.
        what: a description of the content, for the message.
        error: the type of exception to raise.

    Returns:
        name to array.

    Raises:
        error: the file is missing, damaged, no ``.npz`` file, holds pickled objects, over 1 GiB or over 1000 arrays.
    """
    try:
        check_regular(path)
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if len(entries) > _MOST_ARRAYS or sum(entry.file_size for entry in entries) > _LARGEST:
                raise ValueError(f"it holds more than {_LARGEST >> 20} MiB, or more than {_MOST_ARRAYS} arrays")
            return {entry.filename.removesuffix(".npy"): _read_array(archive, entry) for entry in entries}
    except Exception as reason:  # zipfile, zlib and numpy each raise exception types of their own
        told = reason.strerror if isinstance(reason, OSError) and reason.strerror else str(reason)
        first = (told.splitlines() or [type(reason).__name__])[0]
        raise error(f"{path} does not hold {what}: {first}", hint="Copy or make the file again.") from reason


def _read_array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> npt.NDArray[Any]:
    """Read one array, after checking that its header fits the size of its entry."""
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
    """Read the hashes of the images in each split.

    Returns:
        name of the split to hashes (N,) uint64, as in ``Dataset.hashes``; empty if the bundle was exported without
        data.

    Raises:
        BundleError: the file is damaged or does not hold hashes.
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
