"""Labelled pictures from folders and files, by one function: :func:`open_dataset`."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, compress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from dyce_runtime.dataset_files import find_idx, read_digits, read_idx, read_npz
from dyce_runtime.errors import DataError

_log = logging.getLogger("dyce_runtime")

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff", ".pgm")
MOST_SKIPPED = 0.01

_Scalar = TypeVar("_Scalar", bound=np.generic)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Pictures, with labels or without.

    Attributes:
        source: where they come from, as in ``digits#test``.
        items: N paths, or a uint8 array (N, H, W) or (N, H, W, C).
        labels: (N,) int64 class indices, or None.
        class_names: names in index order, where known.
        skipped_files: files of the source that are no pictures, or that cannot be opened.
    """

    source: str
    items: Sequence[Path] | NDArray[np.uint8]
    labels: NDArray[np.int64] | None = None
    class_names: tuple[str, ...] | None = None
    skipped_files: tuple[Path, ...] = ()

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.items)

    @property
    def skipped(self) -> int:
        """Number of files that were left out."""
        return len(self.skipped_files)

    def images(self, indices: Iterable[int]) -> list[Path | NDArray[np.uint8]]:
        """Pictures as :func:`dyce_runtime.preprocessing.preprocess` takes them; files are not opened yet."""
        return [self.items[int(index)] for index in indices]

    @cached_property
    def hashes(self) -> NDArray[np.uint64]:
        """(N,) first eight bytes of the SHA-256 of every file, or of every array's shape and pixels.

        Computed on first use. Raises DataError if a file cannot be read.
        """
        return _map(_content_hash, self.items, np.uint64)

    def take(self, rows: NDArray[np.int64]) -> Dataset:
        """The data set with some of its samples."""
        items = self.items[rows] if isinstance(self.items, np.ndarray) else [self.items[row] for row in rows]
        return replace(self, items=items, labels=None if self.labels is None else self.labels[rows])

    def check(self) -> Dataset:
        """The data set without the files that cannot be opened as pictures; how many is logged.

        Reads headers only, so a picture that breaks off in the middle is found when it is used.

        Raises:
            DataError: more than 1 % of the files are unreadable or no pictures.
        """
        if isinstance(self.items, np.ndarray):
            return self
        good = _map(_opens, self.items, np.bool_)
        if good.all():
            return self
        bad = list(compress(self.items, ~good))
        skipped = _skip(self.source, int(good.sum()), self.skipped_files, bad)
        return replace(self.take(np.flatnonzero(good)), skipped_files=skipped)

    def describe(self) -> str:
        """One line for people: source, number of pictures, classes."""
        classes = "no labels" if self.labels is None else f"classes: {np.unique(self.labels).size}"
        skipped = f", files skipped: {self.skipped}" if self.skipped else ""
        return f"{self.source} (pictures: {len(self)}, {classes}{skipped})"


def open_dataset(
    source: str | Path,
    *,
    class_names: Sequence[str] | None = None,
    num_classes: int | None = None,
    classes_file: Path | None = None,
) -> Dataset:
    """Open labelled or unlabelled pictures. Files are listed, not opened: see :meth:`Dataset.check`.

    Args:
        source: one of

            - a folder of class folders. Their names are the model's class names (not all need be there), or class
              indices, or ``classes_file`` maps them; failing that there must be as many as the model has classes,
              and their sorted order is the index;
            - a folder with pictures directly in it, or one picture: no labels;
            - an ``.npz`` file with ``images`` or ``x``, uint8 (N, H, W) or (N, H, W, C), and if there are labels
              ``labels`` or ``y``, integers (N,);
            - a folder of MNIST-style IDX files, gzipped or not, also below ``raw`` or ``NAME/raw`` as torchvision
              stores them. ``FOLDER#train`` and ``FOLDER#test`` choose; without a choice it is the training part;
            - ``digits``: scikit-learn's handwritten digits; ``digits#train`` and ``digits#test`` are a fixed
              division, three to one. (A folder of that name is ``./digits``.)
        class_names: the model's, in index order.
        num_classes: number of classes of the model; labels must be smaller.
        classes_file: for class folders: a text file with one folder name per line in index order, or JSON
            ``{folder: index}``.

    Raises:
        DataError: the source is missing, empty or unreadable, or does not fit the model.
    """
    names = None if class_names is None else tuple(class_names)
    classes = len(names) if names is not None and num_classes is None else num_classes
    path, part = _split_part(source)
    idx = find_idx(path)
    if isinstance(source, str) and source.partition("#")[0] == "digits":
        dataset = Dataset(*read_digits(part))
    elif idx:
        dataset = Dataset(*read_idx(idx, part))
    elif part is not None:
        raise DataError(
            f"{source}: no such file or folder", hint=f"#{part} chooses from MNIST-style folders and 'digits'"
        )
    elif path.is_dir():
        dataset = _read_folder(path, names, classes, classes_file)
    elif path.is_file() and path.suffix.lower() == ".npz":
        dataset = Dataset(*read_npz(path))
    elif path.is_file() and path.suffix.lower() in PICTURES:
        dataset = Dataset(str(path), [path])
    else:
        raise DataError(
            f"{path}: " + ("not a kind of data known here" if path.exists() else "no such file or folder"),
            hint="give a folder of class folders, pictures or MNIST-style files, an .npz file, a picture or 'digits'",
        )
    if classes_file is not None and (dataset.labels is None or isinstance(dataset.items, np.ndarray)):
        raise DataError(f"{source}: has no class folders that {classes_file} could map", hint="leave out --classes")
    _check_labels(dataset, classes)
    return replace(dataset, class_names=names or dataset.class_names)


def require_classes(dataset: Dataset) -> None:
    """Raise DataError unless the samples are labelled, with two classes at least: what fitting needs."""
    if dataset.labels is None:
        raise DataError(f"{dataset.source}: has no labels", hint="put the pictures into one folder per class")
    present = np.unique(dataset.labels)
    if present.size < 2:
        raise DataError(
            f"{dataset.source}: only one class ({present[0]}), expected two or more",
            hint="name the folder that holds the class folders",
        )


def _split_part(source: str | Path) -> tuple[Path, str | None]:
    """Take ``FOLDER#part`` apart, unless a file is really called that."""
    folder, hash_sign, part = str(source).rpartition("#")
    return (Path(folder), part) if hash_sign and not Path(source).exists() else (Path(source), None)


def _check_labels(dataset: Dataset, classes: int | None) -> None:
    labels = dataset.labels
    if len(dataset) == 0:
        raise DataError(f"{dataset.source}: found no pictures", hint=f"pictures end in {', '.join(PICTURES)}")
    if labels is None:
        return
    if len(labels) != len(dataset):
        raise DataError(
            f"{dataset.source}: found {len(labels)} labels, expected {len(dataset)}, one per picture",
            hint="store both in the same order",
        )
    limit = np.iinfo(np.int64).max if classes is None else classes
    if wrong := [label for label in (labels.min(), labels.max()) if not 0 <= label < limit]:
        expected = "expected 0 or more" if classes is None else f"model has {classes} classes"
        raise DataError(f"{dataset.source}: found label {wrong[0]}, {expected}", hint="class indices start at 0")


# --- folders of pictures ---------------------------------------------------------------------------------------------


def _read_folder(
    folder: Path, names: tuple[str, ...] | None, classes: int | None, classes_file: Path | None
) -> Dataset:
    folders = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not folders:
        pictures, others = _list(folder)
        return Dataset(str(folder), pictures, skipped_files=_skip(folder, len(pictures), others))
    index = _class_indices(folder, folders, names, classes, classes_file)
    listings = {name: _list(folder / name) for name in folders}
    pictures = [picture for found, _ in listings.values() for picture in found]
    labels = np.repeat([index[name] for name in folders], [len(found) for found, _ in listings.values()])
    # Loose files beside the class folders, such as a list of classes, are nobody's sample and not counted.
    skipped = _skip(folder, len(pictures), [other for _, others in listings.values() for other in others])
    complete = sorted(index.values()) == list(range(classes or len(index)))
    ordered = tuple(sorted(index, key=index.__getitem__)) if complete else None
    return Dataset(str(folder), pictures, labels.astype(np.int64), ordered, skipped)


def _list(folder: Path) -> tuple[list[Path], list[Path]]:
    """Pictures and other files at any depth, sorted; what is hidden is left out of both."""
    files: list[Path] = []
    for root, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [Path(root, name) for name in sorted(names) if not name.startswith(".")]
    pictures = [file for file in files if file.suffix.lower() in PICTURES]
    return pictures, [file for file in files if file.suffix.lower() not in PICTURES]


def _class_indices(
    folder: Path, folders: list[str], names: tuple[str, ...] | None, classes: int | None, classes_file: Path | None
) -> dict[str, int]:
    """The class index of every class folder, by the first rule of :func:`open_dataset` that applies."""
    if classes_file is not None:
        given = _read_classes(classes_file)
        if unknown := [name for name in folders if name not in given]:
            raise DataError(
                f"{folder}: {len(unknown)} class folders are not in {classes_file}: {_first(unknown)}",
                hint="list every folder's name in index order, or as JSON {folder: index}",
            )
        return given
    # A name that the model has twice says nothing ("crane" of ImageNet).
    times = Counter(names or ())
    position = {name: index for index, name in enumerate(names or ()) if times[name] == 1}
    unknown = [name for name in folders if name not in position]
    if not unknown:
        return {name: position[name] for name in folders}
    if len(unknown) < len(folders):
        raise DataError(
            f"{folder}: {len(unknown)} of {len(folders)} class folders are not the name of one class of the model: "
            f"{_first(unknown)}",
            hint="rename them, or map all with --classes FILE",
        )
    if all(name.isascii() and name.isdecimal() for name in folders):
        return {name: int(name) for name in folders}
    if {name.lower() for name in folders} <= {"train", "training", "val", "valid", "validation", "test"}:
        raise DataError(
            f"{folder}: found the folders {_first(folders)}, expected class folders", hint="name one of them"
        )
    if classes is not None and classes != len(folders):
        raise DataError(
            f"{folder}: found {len(folders)} class folders ({_first(folders)}), model has {classes} classes",
            hint="rename the folders to the model's class names, or to class indices, or map them with --classes FILE",
        )
    _log.warning("%s: folder names match no class names; taking their sorted order as class index", folder)
    return {name: index for index, name in enumerate(folders)}


def _read_classes(file: Path) -> dict[str, int]:
    try:
        text = file.read_text(encoding="utf-8")
        index = json.loads(text) if file.suffix.lower() == ".json" else _number(text.strip().splitlines())
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read as a list of classes ({error})") from error
    if not isinstance(index, dict) or not all(type(value) is int for value in index.values()):
        raise DataError(f"{file}: expected JSON that maps folder names to class indices", hint='as in {"cat": 0}')
    return index


def _number(lines: list[str]) -> dict[str, int]:
    if twice := [name for name, times in Counter(lines).items() if times > 1]:
        raise ValueError(f"found twice: {_first(twice)}")
    return {line.strip(): index for index, line in enumerate(lines)}


# --- many files at once ----------------------------------------------------------------------------------------------


def _map(function: Callable[[Any], Any], items: Sequence[Any] | NDArray[Any], dtype: type[_Scalar]) -> NDArray[_Scalar]:
    """Apply a function that mostly waits for the disk to all items, in order, on several threads."""
    chunks = (items[start : start + 256] for start in range(0, len(items), 256))
    with ThreadPoolExecutor(max_workers=16) as pool:
        parts = pool.map(lambda chunk: [function(item) for item in chunk], chunks)
        return np.fromiter(chain.from_iterable(parts), dtype, len(items))


def _content_hash(item: Path | NDArray[np.uint8]) -> int:
    if isinstance(item, Path):
        try:
            content = item.read_bytes()
        except OSError as error:
            raise DataError(f"{item}: cannot be read ({error.strerror})") from error
    else:
        content = repr(item.shape).encode() + item.tobytes()
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "little")


def _opens(path: Path) -> bool:
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.verify()
    except Exception:  # Pillow's decoders raise many kinds
        return False
    return True


def _skip(source: str | Path, kept: int, others: Sequence[Path], unreadable: Sequence[Path] = ()) -> tuple[Path, ...]:
    """Log the files that are left out. Raises DataError if they are more than 1 % of all."""
    skipped = (*others, *unreadable)
    message = (
        f"{source}: {len(others)} of {kept + len(skipped)} files are no pictures, {len(unreadable)} cannot be opened"
    )
    if len(skipped) > MOST_SKIPPED * (kept + len(skipped)):
        raise DataError(f"{message}: {_first(skipped)}", hint=f"remove them; up to {MOST_SKIPPED:.0%} would be skipped")
    if skipped:
        _log.warning("%s; skipped: %s", message, _first(skipped))
    return skipped


def _first(names: Sequence[Any]) -> str:
    """The first three, for a message."""
    return ", ".join(str(name) for name in names[:3]) + (", ..." if len(names) > 3 else "")
