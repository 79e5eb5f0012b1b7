"""Temporary folders beside a destination: for the output until it is complete, and for work to be resumed."""

from __future__ import annotations

import errno
import fcntl
import glob
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dyce_export.writing.exchange import replace_folder
from dyce_runtime.errors import DestinationError, DyceError, VerificationError
from dyce_runtime.names import is_text

log = logging.getLogger("dyce_export")

_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def staged(destination: Path, *, force: bool) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``destination`` if the block succeeds and is removed if it fails.

    An existing bundle at the destination stays there until the new folder is complete; then the two are exchanged
    atomically. Temporary folders that killed processes left beside the destination are removed.

    Raises:
        DestinationError: the destination exists and ``force`` is False, it is not writable, the disk is full, or
            another process is writing to it.
    """
    destination = _absolute(destination)
    check_destination(destination, force=force)
    with _disk_errors(destination.parent), _only_writer(destination):
        with _writable(destination.parent):
            destination.parent.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(destination)
            folder = Path(tempfile.mkdtemp(dir=destination.parent, prefix=_prefix(destination)))
        try:
            with _locked(folder):
                yield folder
                folder.chmod(0o755)
                check_destination(destination, force=force)  # another process may have been faster
                _move(folder, destination)
        finally:
            _discard(folder)


def _discard(folder: Path) -> None:
    """Remove a folder, or the symbolic link that has replaced it; the target of the link is not touched."""
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder, ignore_errors=True)


def _prefix(destination: Path) -> str:
    return f".{destination.name}.staged-"


@contextmanager
def _only_writer(destination: Path) -> Iterator[None]:
    """Prevent other processes from replacing the bundle at the destination meanwhile."""
    if not destination.is_dir():
        yield
        return
    with _locked(destination):
        yield


def _remove_leftovers(destination: Path) -> None:
    """Remove temporary folders beside a destination that no running process has locked."""
    for folder in destination.parent.glob(f"{glob.escape(_prefix(destination))}*"):
        if folder.is_dir() and not folder.is_symlink():
            with suppress(DestinationError, OSError), _locked(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _move(folder: Path, destination: Path) -> None:
    """Move the folder to the destination; a bundle that it may replace there is then found at ``folder``."""
    if destination.is_dir() and any(destination.iterdir()):
        replace_folder(folder, destination)
        return
    try:
        os.replace(folder, destination)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):  # another process was faster, in the last instant
            check_destination(destination, force=False)
        raise


@contextmanager
def kept_work(destination: Path, rank: int = 0) -> Iterator[Path]:
    """Yield the folder ``DESTINATION.work`` for results that take long to compute; remove it if the block succeeds.

    The folder is kept, and a warning says so, if the same command can resume from it: after an interruption, or when
    a finished bundle failed verification.

    Args:
        rank: rank of this process among those that share the work. Each process has its own subfolder.

    Raises:
        DestinationError: another export to the same destination is running, or the disk is full.
    """
    destination = _absolute(destination)
    above = destination.with_name(f"{destination.name}.work")
    with _disk_errors(destination.parent):
        folder = above / str(rank)
        with _writable(destination.parent):
            folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            try:
                yield folder
            except (DyceError, OSError) as error:
                if isinstance(error, VerificationError):
                    _say_kept(above, rank)
                else:
                    _remove(folder)
                raise
            except BaseException:  # an interruption, or an error of ours
                _say_kept(above, rank)
                raise
            _remove(folder)


def _say_kept(folder: Path, rank: int) -> None:
    if rank == 0:
        log.warning("what was computed is kept in %s; the same command goes on from there", folder)


def _remove(folder: Path) -> None:
    """Remove a folder of work, and its parent if that is empty then."""
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        folder.parent.rmdir()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DestinationError(
                f"another command writes in {folder}", hint="Wait until it ends, or choose another name with -o."
            ) from None
        yield
    finally:
        os.close(handle)


@contextmanager
def _disk_errors(place: Path) -> Iterator[None]:
    """Turn a full disk into a DestinationError."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DestinationError(
                f"the disk of {place} is full; nothing was written",
                hint="Free some space, or write elsewhere with -o.",
            ) from error
        raise


@contextmanager
def _writable(place: Path) -> Iterator[None]:
    """Turn failures of the first write, except a full disk, into a DestinationError."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise
        raise DestinationError(f"{place} cannot be written: {error.strerror}") from error


def _absolute(path: Path) -> Path:
    """Return the path without ``.``, which has neither a name nor a parent of its own."""
    return Path(os.path.abspath(path))


def check_destination(destination: Path, *, force: bool) -> None:
    """Raise DestinationError if the destination exists and may not be replaced."""
    if not is_text(destination):  # engines open the files by path and need valid UTF-8
        raise DestinationError(
            f"{destination} is a name in another encoding than UTF-8; expected text", hint="Choose another with -o."
        )
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
