"""Data sets of images, with or without labels, from folders and files: see :func:`open_dataset`."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, compress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from dyce_runtime.bundle.manifest import Preprocessing
from dyce_runtime.errors import DataError, DyceError, RuntimeInputError
from dyce_runtime.inputs.class_folders import class_folders, in_order
from dyce_runtime.inputs.class_order import Numbering
from dyce_runtime.inputs.dataset_files import find_idx, read_digits, read_idx, read_npz
from dyce_runtime.inputs.dataset_folders import PICTURES, files_below, top_level
from dyce_runtime.inputs.decoding import check_array, check_scale, decode, open_file

_log = logging.getLogger("dyce_runtime")

MOST_SKIPPED = 0.01
# Threads that read files, and threads that decode images. Each of the latter may hold a large image in memory.
_READERS, _DECODERS = 16, 4
# The preprocessing that images are checked against if the model is not known.
_RGB = Preprocessing(1, (1, 1), "nearest", (0.5,) * 3, (0.5,) * 3)

_T = TypeVar("_T")


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images, with or without labels.

    Attributes:
        source: where they come from, such as ``digits#test``.
        items: N paths, or an array (N, H, W) or (N, H, W, C) of uint8, or of floats as
            :func:`dyce_runtime.inputs.preprocessing.preprocess` takes them.
        labels: (N,) int64 class indices, or None.
        class_names: names in index order; None if they are not known.
        skipped_files: files of the source that are not images, or that cannot be read.
        numberings: the possible numberings of the class folders if it is not known which one the model uses; the labels
            follow the first one. Empty if the labels are known. See :mod:`dyce_runtime.inputs.labelled`.
    """

    source: str
    items: Sequence[Path] | NDArray[np.uint8] | NDArray[np.floating[Any]]
    labels: NDArray[np.int64] | None = None
    class_names: tuple[str, ...] | None = None
    skipped_files: tuple[Path, ...] = ()
    numberings: tuple[Numbering, ...] = ()

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.items)

    @property
    def skipped(self) -> int:
        """Number of files that were skipped."""
        return len(self.skipped_files)

    def images(self, indices: Iterable[int]) -> list[Path | NDArray[np.uint8] | NDArray[np.floating[Any]]]:
        """Return images as :func:`dyce_runtime.inputs.preprocessing.preprocess` takes them; files are not opened."""
        return [self.items[int(index)] for index in indices]

    @cached_property
    def hashes(self) -> NDArray[np.uint64]:
        """(N,) uint64, the first eight bytes of the SHA-256 of every file, or of every array's shape and pixels.

        Computed on first use. Raises DataError if a file cannot be read.
        """
        return np.array(_map(_content_hash, self.items, _READERS), np.uint64)

    def take(self, rows: NDArray[np.int64]) -> Dataset:
        """Return a data set with the samples at indices ``rows`` only."""
        items = self.items[rows] if isinstance(self.items, np.ndarray) else [self.items[row] for row in rows]
        return replace(self, items=items, labels=None if self.labels is None else self.labels[rows])

    def numbered(self, way: Numbering, classes: int) -> Dataset:
        """Return the data set with the labels of one of its numberings, which then count as known.

        Args:
            way: one of :attr:`numberings`.
            classes: number of classes of the model. If each has a folder, the folders become the class names.
        """
        assert self.labels is not None
        first = self.numberings[0].indices
        other = np.zeros(max(first.values()) + 1, np.int64)
        other[list(first.values())] = [way.indices[folder] for folder in first]
        names = self.class_names or in_order(way.indices, classes)
        return replace(self, labels=other[self.labels], class_names=names, numberings=())

    def relabelled(self, order: Sequence[int]) -> Dataset:
        """Return the data set with the labels of another model, whose index for class k is ``order[k]``.

        The class names are dropped.
        """
        indices = np.asarray(order, np.int64)
        return replace(self, labels=None if self.labels is None else indices[self.labels], class_names=None)

    def check(self, spec: Preprocessing | None = None) -> Dataset:
        """Decode all files, and return the data set without those that cannot be decoded; their number is logged.

        Args:
            spec: how images are prepared for the model; None expects RGB images.

        Raises:
            DataError: no image fits the model, or more than 1 % of the files are unreadable or not images.
        """
        if isinstance(self.items, np.ndarray):
            if spec is not None:
                self._check_arrays(self.items, spec)
            return self
        problems = _map(lambda path: _problem(path, spec or _RGB), self.items, _DECODERS)
        bad = [problem for problem in problems if problem is not None]
        if not bad:
            return self
        if len(bad) == len(self.items):
            raise DataError(f"{self.source}: none of {len(bad)} pictures fits: {bad[0].message}", hint=bad[0].hint)
        good = [problem is None for problem in problems]
        broken = list(compress(self.items, np.logical_not(good)))
        skipped = _skip(self.source, sum(good), (*self.skipped_files, *broken), why=bad[0].message)
        return replace(self.take(np.flatnonzero(good)), skipped_files=skipped)

    def _check_arrays(self, items: NDArray[Any], spec: Preprocessing) -> None:
        try:
            found = f"{self.source}: a picture"
            check_array(items[0], spec, found)
            if items.dtype != np.uint8:
                check_scale(items, spec, f"{self.source}: found {items.dtype} of shape {items.shape}")
        except RuntimeInputError as error:
            raise DataError(error.message, hint=error.hint) from None

    def describe(self) -> str:
        """Return one line for the user: source, number of images, number of classes."""
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
    """Open labelled or unlabelled images. Image files are listed, but not opened: see :meth:`Dataset.check`.

    Args:
        source: one of

            - a folder of class folders. ``classes_file`` maps them to class indices, or their names are class names of
              the model (some may be missing). Otherwise their names must be numbers, or there must be one folder per
              class of the model; the order is then not known, see :attr:`Dataset.numberings`;
            - a folder that contains images at any depth but no class folders, or a single image: no labels. Here and in
              class folders, an array (H, W, C) in an ``.npy`` file counts as an image;
            - an ``.npz`` file with ``images`` or ``x``, (N, H, W) or (N, H, W, C), uint8 or floats from 0 to 1, and
              optionally ``labels`` or ``y``, integers (N,);
            - a folder of MNIST-style IDX files, gzipped or not, also below ``raw`` or ``NAME/raw``, where torchvision
              stores them. ``FOLDER#train`` and ``FOLDER#test`` select a part; the default is the training part;
            - ``digits``: scikit-learn's handwritten digits; ``digits#train`` and ``digits#test`` are a fixed division,
              three to one. (A folder of that name is ``./digits``.)
        class_names: names of the model's classes, in index order.
        num_classes: number of classes of the model; labels must be smaller.
        classes_file: for class folders, a text file with one folder name per line in index order, or JSON
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


def has_class_folders(source: str | Path) -> bool:
    """Return whether a source is a folder of class folders."""
    path, part = _split_part(source)
    named = source == "digits" or part is not None
    return not named and path.is_dir() and not find_idx(path) and bool(top_level(path)[0])


def require_classes(dataset: Dataset) -> None:
    """Raise DataError unless the samples are labelled with at least two classes, as fitting requires."""
    if dataset.labels is None:
        raise DataError(f"{dataset.source}: has no labels", hint="put the pictures into one folder per class")
    present = np.unique(dataset.labels)
    if present.size < 2:
        raise DataError(
            f"{dataset.source}: only one class ({present[0]}), expected two or more",
            hint="give pictures of all classes; of class folders, name the folder above them",
        )


def _split_part(source: str | Path) -> tuple[Path, str | None]:
    """Split ``FOLDER#part``, unless a file of that name exists."""
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
    folders, loose = top_level(folder)
    if not folders:
        pictures, others = files_below(folder)
        return Dataset(str(folder), pictures, skipped_files=_skip(folder, len(pictures), others))
    if loose:
        _log.warning("%s: %d pictures beside the class folders are left out: %s", folder, len(loose), _first(loose))
    known, ways = class_folders(folder, folders, names, classes, classes_file)
    index = known or ways[0].indices
    listings = {name: files_below(folder / name) for name in folders}
    pictures = [picture for found, _ in listings.values() for picture in found]
    labels = np.repeat([index[name] for name in folders], [len(found) for found, _ in listings.values()])
    # Files next to the class folders, such as a list of classes, do not count as skipped.
    skipped = _skip(folder, len(pictures), [other for _, others in listings.values() for other in others])
    ordered = None if known is None else in_order(known, classes)
    return Dataset(str(folder), pictures, labels.astype(np.int64), ordered, skipped, ways)


# --- many files at once ----------------------------------------------------------------------------------------------


def _map(function: Callable[[Any], _T], items: Sequence[Any] | NDArray[Any], workers: int) -> list[_T]:
    """Apply a function to all items, in order, on several threads."""
    chunks = (items[start : start + 256] for start in range(0, len(items), 256))
    with ThreadPoolExecutor(max_workers=workers) as pool:
        parts = pool.map(lambda chunk: [function(item) for item in chunk], chunks)
        return list(chain.from_iterable(parts))


def _content_hash(item: Path | NDArray[Any]) -> int:
    if isinstance(item, Path):
        try:
            with open_file(item) as file:
                content = file.read()
        except (OSError, DataError) as error:
            raise DataError(f"{item}: cannot be read ({error})") from error
    else:
        content = repr(item.shape).encode() + item.tobytes()
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "little")


def _problem(path: Path, spec: Preprocessing) -> DyceError | None:
    """Return the error with which a file cannot be prepared for a model; None if it can."""
    try:
        decode(path, spec, str(path), reduced=True)
    except DyceError as error:
        return error
    return None


def _skip(source: str | Path, kept: int, skipped: Sequence[Path], *, why: str = "") -> tuple[Path, ...]:
    """Log the files that are skipped, and return them. Raises DataError if they are more than 1 % of all."""
    message = f"{source}: {len(skipped)} of {kept + len(skipped)} files are no pictures that can be read"
    if len(skipped) > MOST_SKIPPED * (kept + len(skipped)):
        reason = f" The first: {why}" if why else ""
        hint = f"convert them to JPEG or PNG, or remove them; up to {MOST_SKIPPED:.0%} would be skipped.{reason}"
        raise DataError(f"{message}: {_first(skipped)}", hint=hint)
    if skipped:
        _log.warning("%s; skipped: %s%s", message, _first(skipped), f" ({why})" if why else "")
    return tuple(skipped)


def _first(names: Sequence[Any]) -> str:
    """Return the first three names, for a message."""
    return ", ".join(str(name) for name in names[:3]) + (", ..." if len(names) > 3 else "")
