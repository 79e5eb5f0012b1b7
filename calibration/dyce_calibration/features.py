"""Features: what the heads see of every sample, computed once on the frozen backbone and kept on disk."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dyce_runtime.datasets import MOST_SKIPPED, Dataset
from dyce_runtime.errors import DataError, DestinationError
from dyce_runtime.manifest import Preprocessing
from dyce_runtime.preprocessing import preprocess

# images (N, C, H, W) -> logits (N, classes) and, per exit, its pooled activation (N, features)
Backbone = Callable[[Tensor], tuple[Tensor, Sequence[Tensor]]]
BATCH = 64

log = logging.getLogger("dyce_calibration")


@dataclass(frozen=True)
class Features:
    """Pooled activations and logits of a data set, memory-mapped, in a random order.

    Attributes:
        logits: (N, classes) float32, of the base model.
        exits: per exit (N, features) float32.
        labels: (N,) int64, from the data or, without labels, the base model's own predictions.
        hashes: (N,) uint64, content of each sample.
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
    preprocessing: Preprocessing,
    folder: Path,
    *,
    seed: int,
    progress: Callable[[Iterable[int]], Iterable[int]] = lambda batches: batches,
) -> Features:
    """Run the backbone once over a data set and keep what the heads need, in files below ``folder``.

    Samples are visited in a random order, so that any run of neighbouring rows is a random sample: training can
    then read the files from front to back. Memory stays flat: batches of 64 go straight to the files.

    Pictures that cannot be decoded are left out, with a warning.

    Raises:
        DestinationError: the estimated space is not free.
        DataError: more than 1 % of the pictures cannot be decoded.
    """
    order = np.random.default_rng(seed).permutation(len(dataset))
    folder.mkdir(parents=True, exist_ok=True)
    stores: list[NDArray[np.float32]] = []
    kept: list[NDArray[np.int64]] = []
    done = 0
    for start in progress(range(0, len(order), BATCH)):
        rows, images = _read(dataset, order[start : start + BATCH], preprocessing)
        if len(rows) == 0:
            continue
        with torch.inference_mode():
            logits, pooled = backbone(torch.from_numpy(images))
        results = [logits, *pooled]
        if not stores:
            _check_space(folder, len(order) * sum(tensor.shape[1] for tensor in results) * 4)
            stores = [_create(folder / f"{i}.npy", len(order), t.shape[1]) for i, t in enumerate(results)]
        for store, tensor in zip(stores, results, strict=True):
            store[done : done + len(rows)] = tensor.numpy()
        kept.append(rows)
        done += len(rows)
    _check_broken(dataset, done)
    order = np.concatenate(kept)
    base, *exits = [store[:done] for store in stores]
    labels = base.argmax(axis=1) if dataset.labels is None else dataset.labels[order]
    source = "base" if dataset.labels is None else "data"
    return Features(base, tuple(exits), labels.astype(np.int64), dataset.hashes[order], source)


def _read(
    dataset: Dataset, rows: NDArray[np.int64], preprocessing: Preprocessing
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The rows whose pictures can be decoded, and their preprocessed images."""
    try:
        return rows, preprocess(dataset.images(rows), preprocessing)
    except DataError:  # a file that breaks off in the middle; find out which
        images, readable = [], []
        for row in rows:
            try:
                images.append(preprocess(dataset.images([row]), preprocessing))
                readable.append(row)
            except DataError as error:
                log.warning("skipped: %s", error)
        empty = np.empty((0, 0), np.float32)
        return np.array(readable, np.int64), np.concatenate(images) if images else empty


def _check_broken(dataset: Dataset, readable: int) -> None:
    broken = len(dataset) - readable
    if broken > MOST_SKIPPED * len(dataset):
        raise DataError(
            f"{broken} of the {len(dataset)} pictures of {dataset.source} cannot be decoded; at most "
            f"{MOST_SKIPPED:.0%} may be",
            hint="Their names are above. Replace or remove them.",
        )


def _create(path: Path, rows: int, columns: int) -> NDArray[np.float32]:
    store: NDArray[np.float32] = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, columns))
    # A full disk has to show as an error here, not as a crash when the mapped pages are written.
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
