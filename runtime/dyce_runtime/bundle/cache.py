"""Where what belongs to a bundle lies: in it, or in the user's cache, which this machine fills."""

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
    """Where engines of a target are looked for: in the bundle, if its manifest lists them, and in the user's cache."""
    inside, prefix = bundle.path / ENGINES / target, f"{ENGINES}/{target}/"
    listed = {name for name in bundle.manifest.files if name.startswith(prefix)}
    there = {prefix + path.name for path in inside.iterdir()} if inside.is_dir() else set()
    if there - listed:
        log.warning("engines in %s are left out: the manifest does not list %s", inside, min(there - listed))
        listed = set()
    return (*([inside] if listed else []), cache_folder(bundle, target))


def cache_folder(bundle: Bundle, target: str) -> Path:
    """The folder of a bundle and a target in the user's cache."""
    return cache_of(bundle) / target


def cache_of(bundle: Bundle) -> Path:
    """The folder of a bundle in the user's cache."""
    return user_cache() / bundle.fingerprint[:16]


def user_cache() -> Path:
    """The folder in which this user keeps what can be made again."""
    return _cache() / "dyce-export"


def _cache() -> Path:
    named, home = os.environ.get("XDG_CACHE_HOME"), os.path.expanduser("~")
    if named or home != "~":
        return Path(named) if named else Path(home) / ".cache"
    import tempfile  # slow to import, and seldom needed: a container whose user has no home

    own = Path(tempfile.gettempdir()) / f"dyce-export-{os.getuid()}"
    # Everybody may write there. What another user has prepared, such as a link, is not used.
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
