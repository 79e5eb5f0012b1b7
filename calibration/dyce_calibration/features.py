"""Features: what the heads see of every sample, computed once on the frozen backbone and kept on disk."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dyce_runtime.datasets import Dataset
from dyce_runtime.errors import DestinationError
from dyce_runtime.manifest import Preprocessing
from dyce_runtime.preprocessing import preprocess

# images (N, C, H, W) -> logits (N, classes) and, per exit, its pooled activation (N, features)
Backbone = Callable[[Tensor], tuple[Tensor, Sequence[Tensor]]]
BATCH = 64


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

    Raises:
        DestinationError: the estimated space is not free.
    """
    order = np.random.default_rng(seed).permutation(len(dataset))
    folder.mkdir(parents=True, exist_ok=True)
    logits: NDArray[np.float32] | None = None
    exits: list[NDArray[np.float32]] = []
    for start in progress(range(0, len(order), BATCH)):
        rows = order[start : start + BATCH]
        images = torch.from_numpy(preprocess(dataset.images(rows), preprocessing))
        with torch.inference_mode():
            batch_logits, pooled = backbone(images)
        if logits is None:
            widths = [batch_logits.shape[1], *(tensor.shape[1] for tensor in pooled)]
            _check_space(folder, len(order) * sum(widths) * 4)
            logits, *exits = [_create(folder / f"{i}.npy", len(order), width) for i, width in enumerate(widths)]
        logits[start : start + len(rows)] = batch_logits.numpy()
        for store, tensor in zip(exits, pooled, strict=True):
            store[start : start + len(rows)] = tensor.numpy()
    assert logits is not None
    labels = logits.argmax(axis=1) if dataset.labels is None else dataset.labels[order]
    source = "base" if dataset.labels is None else "data"
    return Features(logits, tuple(exits), labels.astype(np.int64), dataset.hashes[order], source)


def _create(path: Path, rows: int, columns: int) -> NDArray[np.float32]:
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, columns))


def _check_space(folder: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed_bytes > free:
        raise DestinationError(
            f"the features of this data set need about {needed_bytes / 1e9:.1f} GB; {free / 1e9:.1f} GB are free",
            hint="Free some space, write the bundle to another disk, or use fewer pictures or exits.",
        )
