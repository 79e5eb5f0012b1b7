"""Writing a folder beside its destination and moving it into place when it is complete."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dyce_runtime.errors import DestinationError


@contextmanager
def staged(destination: Path, *, force: bool) -> Iterator[Path]:
    """A folder to write into, which becomes ``destination`` if the block ends well and vanishes if not.

    What stood at the destination stays until the new folder is complete.

    Raises:
        DestinationError: the destination is taken and ``force`` is False, is not writable, or the disk is full.
    """
    destination = Path(os.path.abspath(destination))  # "." has no name and no parent of its own
    check_destination(destination, force=force)
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=destination.parent, prefix=f".{destination.name}."))
    except OSError as error:
        raise DestinationError(f"{destination.parent} cannot be written: {error.strerror}") from error
    try:
        yield folder
        folder.chmod(0o755)
        _move(folder, destination)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DestinationError(
                f"the disk of {destination.parent} is full; nothing was written",
                hint="Free some space, or write elsewhere with -o.",
            ) from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_destination(destination: Path, *, force: bool) -> None:
    """Raise DestinationError if something stands at the destination and may not be replaced."""
    if destination.is_dir() and not any(destination.iterdir()):
        return
    if not (destination.exists() or destination.is_symlink()):
        return
    if not force:
        raise DestinationError(
            f"{destination} already exists; expected a name that is free",
            hint="Choose another with -o, or replace it with --force.",
        )
    if not (destination / "manifest.json").is_file():
        raise DestinationError(
            f"{destination} is not a bundle, so --force does not replace it", hint="Remove it yourself, or use -o."
        )


def _move(folder: Path, destination: Path) -> None:
    if not destination.exists():
        os.replace(folder, destination)
        return
    old = Path(tempfile.mkdtemp(dir=destination.parent, prefix=f".{destination.name}.old."))
    os.replace(destination, old / "bundle")
    try:
        os.replace(folder, destination)
    except BaseException:
        os.replace(old / "bundle", destination)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
