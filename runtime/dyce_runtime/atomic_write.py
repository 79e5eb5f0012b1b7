"""Writing a file as a whole."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

# Whoever writes the same file may take a temporary one for left behind, in the instant before it is locked.
_ATTEMPTS = 10


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file; readers see the old one or the new one, never a part. Raises OSError.

    What processes that were killed have left beside it is removed.
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
    import tempfile  # with hashlib a sixth of what importing this package takes, and seldom needed

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
    """Temporary files of this file that no process is writing any more."""
    import fcntl
    from glob import escape

    for left in path.parent.glob(f".{escape(path.name)}.????????"):
        with suppress(OSError):  # it is being written, is gone, or is something else
            handle = os.open(left, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                left.unlink()
            finally:
                os.close(handle)
