"""Write files atomically."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

# Between its creation and its lock, another writer of the same file may take a temporary file for a stale one.
_ATTEMPTS = 10


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file atomically: readers see either the old or the new content, never a part of it.

    Stale temporary files of this file, from writers that were killed, are removed.

    Raises:
        OSError: the file cannot be written.
    """
    _remove_leftovers(path)
    for attempt in range(_ATTEMPTS):
        try:
            _write(path, content)
            return
        except FileNotFoundError:
            if attempt == _ATTEMPTS - 1 or not path.parent.is_dir():
                raise


def _write(path: Path, content: bytes) -> None:
    import fcntl
    import tempfile  # imported late: tempfile and hashlib are a sixth of this package's import time, and seldom needed

    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(content)
            file.flush()
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _remove_leftovers(path: Path) -> None:
    """Remove temporary files of this file that no process is writing any more."""
    import fcntl
    from glob import escape

    for stale in path.parent.glob(f".{escape(path.name)}.????????"):
        with suppress(OSError):  # it is still being written, is already gone, or is not a regular file
            handle = os.open(stale, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                stale.unlink()
            finally:
                os.close(handle)
