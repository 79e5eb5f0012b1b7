"""List the content of a data folder: class folders, images and other files. Symbolic links may form cycles."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from dyce_runtime.errors import DataError

# Suffixes of image files. An ``.npy`` file holds one image as an array.
PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff", ".pgm", ".gif", ".npy")
# Files and folders that file managers, archivers and storage devices create; some contain images, such as thumbnails.
_LITTER = frozenset(
    ("thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "__macosx", "$recycle.bin", "system volume information")
)


def top_level(folder: Path) -> tuple[list[str], list[str]]:
    """Return the sorted names of the folders in a folder and of the image files next to them, without hidden ones.

    Raises:
        DataError: the folder cannot be listed.
    """
    try:
        entries = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        _refuse(error)
    shown = [name for name in entries if not _is_hidden(name)]
    folders = [name for name in shown if (folder / name).is_dir()]
    return folders, [name for name in shown if name not in set(folders) and _is_picture(name)]


def files_below(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the image files and the other files at any depth, folder by folder in sorted order, without hidden ones.

    Links to folders are followed, except to a folder that contains the link, and no folder is listed twice.

    Raises:
        DataError: a folder cannot be listed.
    """
    files: list[Path] = []
    seen = set(_identities([*folder.absolute().parents, folder, *folder.resolve().parents]))

    def is_new(inner: Path) -> bool:
        found = [identity for identity in _identities([inner]) if identity not in seen]
        seen.update(found)
        return bool(found)

    for root, folders, names in os.walk(folder, followlinks=True, onerror=_refuse):
        folders[:] = sorted(name for name in folders if not _is_hidden(name) and is_new(Path(root, name)))
        files += [Path(root, name) for name in sorted(names) if not _is_hidden(name)]
    pictures = [file for file in files if _is_picture(file.name)]
    return pictures, [file for file in files if not _is_picture(file.name)]


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _LITTER


def _is_picture(name: str) -> bool:
    return Path(name).suffix.lower() in PICTURES


def _identities(paths: Iterable[Path]) -> Iterable[tuple[int, int]]:
    """Yield the device and inode of folders, which identify a folder whatever the path to it."""
    for path in paths:
        try:
            found = path.stat()
        except OSError:  # a broken link, or one to itself
            continue
        yield found.st_dev, found.st_ino


def _refuse(error: OSError) -> NoReturn:
    raise DataError(f"{error.filename}: cannot be listed ({error.strerror})") from error
