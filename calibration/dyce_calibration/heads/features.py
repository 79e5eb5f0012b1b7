"""Features: the inputs of the heads for every sample, computed once on the frozen backbone and stored on disk."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dyce_calibration.heads import resume
from dyce_calibration.processes import ALONE, Processes
from dyce_runtime.errors import DestinationError, ModelError
from dyce_runtime.inputs.datasets import Dataset
from dyce_runtime.inputs.decoding import Picture

# Maps the model input of N images to logits (N, classes) and, per exit, pooled activations (N, features).
Backbone = Callable[[Any], tuple[Tensor, Sequence[Tensor]]]
# Maps images to the model input.
Prepare = Callable[[Sequence[Picture]], Any]
BATCH = 64
# Interval between two marks; an interruption loses at most this much work.
_SECONDS_BETWEEN_MARKS = 20.0
_MARK = "done.pt"


@dataclass(frozen=True)
class Features:
    """Pooled activations and logits of a data set, memory-mapped, in a random order.

    Attributes:
        logits: (N, classes) float32, of the base model.
        exits: for every exit, (N, features) float32.
        labels: (N,) int64, from the data or, without labels, the base model's own predictions.
        hashes: (N,) uint64, content hash of each sample.
        label_source: ``data`` or ``base``.
    """

    logits: NDArray[np.float32]
    exits: tuple[NDArray[np.float32], ...]
    labels: NDArray[np.int64]
    hashes: NDArray[np.uint64]
    label_source: str

    def __len__(self) -> int:
        return len(self.labels)


def extract_features(
    backbone: Backbone,
    dataset: Dataset,
    prepare: Prepare,
    folder: Path,
    *,
    seed: int,
    progress: Callable[[Iterable[int]], Iterable[int]] = lambda batches: batches,
    processes: Processes = ALONE,
) -> Features:
    """Run the backbone once over a data set and store the features of the heads in files inside ``folder``.

    Samples are visited in a random order, so that any range of consecutive rows is a random sample and training can
    read the files sequentially. Memory use is constant: batches of 64 are written directly to the files. An interrupted
    run is resumed if the folder is the same (see :func:`dyce_calibration.heads.resume.folder_for`).

    With n processes, each computes its own share: every n-th sample of the common random order.

    Args:
        backbone: the frozen model.
        dataset: the images; unreadable ones have to be removed with ``Dataset.check`` before.
        prepare: preprocessing of the images.
        folder: folder for the files, created if needed.
        seed: seed of the random order.
        progress: wraps the iteration over batches.
        processes: the processes that share the work.

    Raises:
        DestinationError: there is less free disk space than the features are estimated to need.
        DataError: an image cannot be prepared.
        ModelError: the model computes NaN or infinity for an image.
    """
    order = np.random.default_rng(seed).permutation(len(dataset))[processes.rank :: processes.count]
    folder.mkdir(parents=True, exist_ok=True)
    store = _Store.open(folder, len(order))
    for start in progress(range(0, len(order), BATCH)):
        if start < store.visited:
            continue
        rows = order[start : start + BATCH]
        inputs = prepare(dataset.images(rows))
        with torch.inference_mode():
            logits, pooled = backbone(inputs)
        _check_numbers(dataset, rows, logits, pooled)
        store.append(rows, [logits, *pooled])
        store.mark(start + BATCH, last=start + BATCH >= len(order))
    rows = store.rows
    base, *exits = store.filled()
    labels = base.argmax(axis=1) if dataset.labels is None else dataset.labels[rows]
    source = "base" if dataset.labels is None else "data"
    return Features(base, tuple(exits), labels.astype(np.int64), dataset.hashes[rows], source)


class _Store:
    """Files of rows to which rows are appended, and a record of the progress.

    Attributes:
        visited: number of samples that need not be visited again.
    """

    def __init__(self, folder: Path, most: int, visited: int, rows: list[NDArray[np.int64]]) -> None:
        self._folder, self._most, self._rows = folder, most, rows
        self._done = sum(map(len, rows))
        self._files = [np.load(path, mmap_mode="r+") for path in _paths(folder)] if self._done else []
        self._marked = time.monotonic()
        self.visited = visited

    @staticmethod
    def open(folder: Path, most: int) -> _Store:
        """Open the store that an earlier run left in the folder, or an empty one, for up to ``most`` rows."""
        state = resume.load(folder / _MARK, ("visited", "rows", "files"))
        if state is not None:
            paths = _paths(folder)
            strange = [path for path in paths if not _holds_rows(path, most)]
            if not strange and len(paths) == state["files"]:
                return _Store(folder, most, state["visited"], [state["rows"].numpy()])
            resume.say_damaged(strange[0] if strange else folder, "a file is missing or no longer what was written")
        return _Store(folder, most, 0, [])

    def append(self, rows: NDArray[np.int64], tensors: Sequence[Tensor]) -> None:
        """Append the results for samples with the indices ``rows``; each tensor is (len(rows), columns) float32."""
        if not self._files:
            _check_space(self._folder, self._most * sum(tensor.shape[1] for tensor in tensors) * 4)
            for path, tensor in zip(_paths(self._folder, len(tensors)), tensors, strict=True):
                self._files.append(_create(path, self._most, tensor.shape[1]))
        for file, tensor in zip(self._files, tensors, strict=True):
            file[self._done : self._done + len(rows)] = tensor.numpy()
        self._rows.append(rows)
        self._done += len(rows)

    def mark(self, visited: int, *, last: bool) -> None:
        """Record the progress on disk, at most once per interval unless this is the ``last`` batch."""
        if not last and time.monotonic() < self._marked + _SECONDS_BETWEEN_MARKS:
            return
        for file in self._files:
            file.flush()
        state = {"visited": visited, "rows": torch.from_numpy(self.rows), "files": len(self._files)}
        resume.save(state, self._folder / _MARK)
        self._marked = time.monotonic()

    @property
    def rows(self) -> NDArray[np.int64]:
        """The sample that each row of the files belongs to, (N,)."""
        return np.concatenate([np.empty(0, np.int64), *self._rows])

    def filled(self) -> list[NDArray[np.float32]]:
        """Return the rows of every file that have been written, (N, columns) each."""
        return [file[: self._done] for file in self._files]


def _paths(folder: Path, count: int | None = None) -> list[Path]:
    """Return the files of a store in order: those that exist, or the first ``count``."""
    return [folder / f"{i}.npy" for i in range(len(list(folder.glob("*.npy"))) if count is None else count)]


def _holds_rows(path: Path, rows: int) -> bool:
    """Return whether a file holds exactly ``rows`` complete rows; opening a truncated one would pad it with zeros."""
    try:
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return False
    return isinstance(array, np.memmap) and array.dtype == np.float32 and array.ndim == 2 and len(array) == rows


def _check_numbers(dataset: Dataset, rows: NDArray[np.int64], logits: Tensor, pooled: Sequence[Tensor]) -> None:
    """Raise ModelError for NaN or infinity; a logit of -inf is allowed, since it excludes a class."""
    strange = ~(torch.isfinite(logits) | torch.isneginf(logits)).all(1) | torch.isneginf(logits).all(1)
    for tensor in pooled:
        strange |= ~torch.isfinite(tensor).all(1)
    if strange.any():
        row = int(rows[int(strange.nonzero()[0])])
        [picture] = dataset.images([row])
        name = picture if isinstance(picture, Path) else f"picture {row} of {dataset.source}"
        raise ModelError(
            f"the model computes NaN or infinity for {name}; expected finite numbers",
            hint="Look for an overflow or a division by zero in the model, or leave that picture out.",
        )


def _create(path: Path, rows: int, columns: int) -> NDArray[np.float32]:
    store: NDArray[np.float32] = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, columns))
    # Reserve the space now, so that a full disk raises an error here instead of crashing a write to a mapped page.
    with path.open("rb+") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return store


def _check_space(folder: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed_bytes > free:
        raise DestinationError(
            f"the features of this data set need about {needed_bytes / 1e9:.1f} GB; {free / 1e9:.1f} GB are free",
            hint="Free some space, write the bundle to another disk, or use fewer pictures or exits.",
        )
