"""Putting a finished folder in the place of another one, so that at every instant one of the two stands there."""

from __future__ import annotations

import ctypes
import errno
import os
from functools import cache
from pathlib import Path
from typing import Any

from dyce_runtime.errors import DestinationError

# Of Linux: renameat2(2).
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_UNKNOWN_HERE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM)


def replace_folder(new: Path, place: Path) -> None:
    """Let ``new`` stand at ``place``, where a folder stands, which is then at ``new``.

    Where the system cannot exchange two names at once there is an instant without either.

    Raises:
        OSError: it cannot be moved.
        DestinationError: it could not be moved, nor what stood there put back; nothing is lost.
    """
    if not _exchanged(new, place):
        aside = new.with_name(f"{new.name}.old")
        os.replace(place, aside)
        try:
            os.replace(new, place)
        except BaseException:
            _restore(aside, place)
            raise
        os.replace(aside, new)


def _exchanged(one: Path, other: Path) -> bool:
    """Exchange two names at once; False where the system or the file system cannot."""
    rename = _renameat2()
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNKNOWN_HERE:
        return False
    raise OSError(number, os.strerror(number), str(other))


@cache
def _renameat2() -> Any:
    return getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)


def _restore(old: Path, place: Path) -> None:
    """Put back what stood at the place. It is never removed, even where that fails."""
    try:
        os.replace(old, place)
    except OSError as error:
        raise DestinationError(
            f"{place} could not be replaced, nor put back: {error.strerror}",
            hint=f"What stood there is whole, in {old}; move it back yourself.",
        ) from error
