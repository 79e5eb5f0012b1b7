"""Records made by running a bundle: what every head says of every picture, through the pieces themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from dyce_calibration.records import Records
from dyce_runtime.datasets import Dataset
from dyce_runtime.manifest import FINAL
from dyce_runtime.session import Session

_BATCH = 64


def record(
    session: Session,
    data: Dataset,
    split: NDArray[np.str_],
    track: Callable[[Iterable[int]], Iterable[int]] = lambda starts: starts,
) -> Records:
    """Run all segments and all heads on all pictures.

    Args:
        data: with labels.
        split: (N,) the name of the split of each picture.
        track: passes batches through, and shows how many are done.

    Raises:
        PieceError: a piece failed.
    """
    assert data.labels is not None
    heads = [(exit.id, head.type) for exit in session.manifest.exits if exit.id != FINAL for head in exit.heads]
    found = []
    for start in track(range(0, len(data), _BATCH)):
        images = session.preprocess(data.images(range(start, min(start + _BATCH, len(data)))))
        found.append(_answers(session, images))
    confidences, predictions = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return Records(tuple(heads), predictions, confidences, data.labels, data.hashes, split)


def _answers(session: Session, images: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Confidences and labels (N, heads + 1), the final one last."""
    answers = []
    with session.device.lane(len(images)) as lane:
        lane.put(images)
        for index, exit in enumerate(session.manifest.exits):
            lane.run(f"segment_{index:02d}")
            for head in [None] if exit.id == FINAL else [head.piece for head in exit.heads]:
                answers.append((lane.decide(head).copy(), lane.answers()[1].copy()))
    confidences, labels = zip(*answers, strict=True)
    return np.stack(confidences, 1), np.stack(labels, 1)
