"""Replacing one folder by another so that one of the two exists at the path at every instant."""

from __future__ import annotations

import ctypes
import errno
import os
from functools import cache
from pathlib import Path
from typing import Any

from dyce_runtime.errors import DestinationError

# Constants of Linux's renameat2(2).
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_UNKNOWN_HERE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM)


def replace_folder(new: Path, place: Path) -> None:
    """Move ``new`` to ``place``; the folder that was at ``place`` is then at ``new``.

    If the system cannot exchange two paths atomically, neither folder exists at ``place`` for an instant.

    Raises:
        OSError: the folder cannot be moved.
        DestinationError: the folder could not be moved and the old one could not be put back; no data is lost.
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
    """Exchange two paths atomically; return False if the system or the file system cannot."""
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
    """Put the old folder back. It is never removed, even if that fails."""
    try:
        os.replace(old, place)
    except OSError as error:
        raise DestinationError(
            f"{place} could not be replaced, and the old folder could not be put back: {error.strerror}",
            hint=f"The old folder is complete, in {old}; move it back yourself.",
        ) from error
