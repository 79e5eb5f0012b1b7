"""Locate files that belong to a bundle but depend on the machine: engines and measurements in the user's cache."""

from __future__ import annotations

import logging
import os
import stat
from contextlib import suppress
from functools import cache
from pathlib import Path

from dyce_runtime.bundle.reader import ENGINES, Bundle

log = logging.getLogger("dyce_runtime")


def engine_folders(bundle: Bundle, target: str) -> tuple[Path, ...]:
    """Return the folders in which engines of a target are looked for, in order.

    These are the folder inside the bundle, if the manifest lists all engines in it, and the one in the user's cache.
    """
    inside, prefix = bundle.path / ENGINES / target, f"{ENGINES}/{target}/"
    listed = {name for name in bundle.manifest.files if name.startswith(prefix)}
    there = {prefix + path.name for path in inside.iterdir()} if inside.is_dir() else set()
    if there - listed:
        log.warning("engines in %s are left out: the manifest does not list %s", inside, min(there - listed))
        listed = set()
    return (*([inside] if listed else []), cache_folder(bundle, target))


def cache_folder(bundle: Bundle, target: str) -> Path:
    """Return the folder of a bundle and a target in the user's cache."""
    return cache_of(bundle) / target


def cache_of(bundle: Bundle) -> Path:
    """Return the folder of a bundle in the user's cache, named after its fingerprint."""
    return user_cache() / bundle.fingerprint[:16]


def user_cache() -> Path:
    """Return the folder for files that can be made again: in ``$XDG_CACHE_HOME`` or ``~/.cache``.

    A user without a home directory gets a private folder in the system's temporary directory.
    """
    return _cache() / "dyce-export"


def _cache() -> Path:
    named, home = os.environ.get("XDG_CACHE_HOME"), os.path.expanduser("~")
    if named or home != "~":
        return Path(named) if named else Path(home) / ".cache"
    import tempfile  # imported late: slow, and needed only in a container whose user has no home

    own = Path(tempfile.gettempdir()) / f"dyce-export-{os.getuid()}"
    # The temporary directory is writable by all users: a link or folder that another user made there is not used.
    with suppress(OSError):
        own.mkdir(mode=0o700, exist_ok=True)
        found = own.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid():
            return own
    return _fresh()


@cache
def _fresh() -> Path:
    import tempfile

    return Path(tempfile.mkdtemp(prefix="dyce-export-"))
