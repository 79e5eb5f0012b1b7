"""Make records by running the pieces of a bundle: the predictions and scores of every head for every image."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dyce_calibration.records import Records
from dyce_runtime.bundle.reader import RECORDS, SPLITS, Bundle
from dyce_runtime.errors import DataError
from dyce_runtime.execution.session import Session
from dyce_runtime.execution.trace import head_answers
from dyce_runtime.inputs.datasets import Dataset
from dyce_runtime.inputs.images import Inputs

_BATCH = 64


def record(
    session: Session,
    data: Dataset,
    split: NDArray[np.str_],
    track: Callable[[Iterable[int]], Iterable[int]] = lambda starts: starts,
) -> Records:
    """Run all segments and all heads on all images.

    Args:
        session: an open session. Its active configuration has no influence.
        data: N images with labels.
        split: (N,) name of the split of each image.
        track: wraps the iteration over batches, to show progress.

    Raises:
        PieceError: a piece failed.
    """
    assert data.labels is not None
    heads = [(exit.id, head.type) for exit in session.manifest.exits[:-1] for head in exit.heads]
    found = []
    for start in track(range(0, len(data), _BATCH)):
        images = session.preprocess(data.images(range(start, min(start + _BATCH, len(data)))))
        found.append(_answers(session, session.inputs(images)))
    scores, predictions = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return Records.of_single_label(tuple(heads), predictions, scores, data.labels, data.hashes, split)


def _answers(session: Session, inputs: Inputs) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return scores and predictions, both (N, heads + 1), with the final head in the last column."""
    said = head_answers(session.device, session.manifest, inputs)
    found = [said[exit.id, head.type] for exit in session.manifest.exits for head in exit.heads]
    return np.stack([one.score for one in found], 1), np.stack([one.label for one in found], 1)


def recorded_pictures(val: Dataset, known: Records) -> Dataset:
    """Return the images of records, in their order and with their labels.

    Raises:
        DataError: ``val`` does not contain all of them.
    """
    rows = {hash: row for row, hash in enumerate(val.hashes.tolist())}
    missing = sum(hash not in rows for hash in known.hashes.tolist())
    if missing:
        raise DataError(
            f"{missing} of the {len(known)} pictures that configurations were chosen from are not in {val.source}",
            hint="Give the same --data and --val as to the export.",
        )
    return replace(val.take(np.array([rows[hash] for hash in known.hashes.tolist()])), labels=known.labels)


def write_records(records: Records, before: Bundle, folder: Path) -> None:
    """Store records in the bundle in ``folder``.

    Args:
        before: the bundle from which it is made; the file with the samples of each split is copied if it has one.
    """
    (folder / RECORDS).parent.mkdir(exist_ok=True)
    records.save(folder / RECORDS)
    if before.file(SPLITS).is_file():
        (folder / SPLITS).write_bytes(before.file(SPLITS).read_bytes())
