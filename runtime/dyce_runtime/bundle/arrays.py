"""Arrays in files (``.npz``), read without unpickling anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dyce_runtime.bundle.reader import SPLITS, Bundle
from dyce_runtime.errors import BundleError, DyceError
from dyce_runtime.json_files import check_regular


def read_arrays(path: Path, what: str, *, error: type[DyceError] = BundleError) -> dict[str, npt.NDArray[Any]]:
    """Every array of a file by its name, of whatever type and shape but never of objects.

    Args:
        what: the file holds, for the message.
        error: what is raised if the file is missing, damaged, something else, or holds pickled objects.
    """
    try:
        check_regular(path)
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("it is a single array")
            return {name: file[name] for name in file.files}
    except Exception as reason:  # zip, zlib and numpy's headers, which may claim any size, each raise their own kinds
        told = reason.strerror if isinstance(reason, OSError) and reason.strerror else str(reason)
        first = (told.splitlines() or [type(reason).__name__])[0]
        raise error(f"{path} does not hold {what}: {first}", hint="Copy or make the file again.") from reason


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
