"""Join the records of a base and its savers on the same images, and their test vectors."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dyce_calibration.recorder import record, recorded_pictures
from dyce_calibration.records import Records
from dyce_export.progress import Progress
from dyce_export.verification.probe_thresholds import threshold_between
from dyce_runtime.bundle.arrays import read_splits
from dyce_runtime.bundle.manifest import BUILTIN, Network
from dyce_runtime.bundle.reader import RECORDS, Bundle
from dyce_runtime.bundle.test_vectors import Vectors, read_vectors
from dyce_runtime.errors import DataError
from dyce_runtime.execution.contracts import TargetSpec
from dyce_runtime.execution.session import Session
from dyce_runtime.execution.trace import head_answers
from dyce_runtime.inputs.datasets import Dataset
from dyce_runtime.targets import registry

log = logging.getLogger("dyce_export")

# Splits whose samples must not have influenced any model, head or threshold.
_HELD_OUT = ("certification", "test")
# Every engine distinguishes confidences that differ by more than this.
_APART = 1e-5


def own_records(like: Records, saver: Bundle) -> Records | None:
    """Return a saver's own records of the samples of ``like``, in the same order; None if some are missing.

    Labels and splits are those of ``like``.
    """
    if not saver.file(RECORDS).is_file():
        return None
    own = Records.load(saver.file(RECORDS))
    rows = {hash: row for row, hash in enumerate(own.hashes.tolist())}
    if not all(hash in rows for hash in like.hashes.tolist()):
        return None
    found = own.take(np.array([rows[hash] for hash in like.hashes.tolist()]))
    return replace(found.with_classes(labels=like.labels), hashes=like.hashes, split=like.split)


def recorded_like(like: Records, saver: Bundle, val: Dataset | None, progress: Progress) -> Records:
    """Return a saver's records of the samples of ``like``, in the same order: its own, or made by running it.

    Raises:
        DataError: the saver has to be run, and ``val`` does not contain all of the images.
    """
    _warn_about_overlap(saver, like)
    own = own_records(like, saver)
    if own is not None:
        return own
    if val is None:
        raise DataError(
            f"saver {saver.manifest.model.name} was not recorded on the pictures from which configurations are chosen",
            hint="Give --val, the pictures that the base was exported with.",
        )
    with Session(saver, registry.reference().name, TargetSpec(), allow_untrained=True) as session:
        pictures = recorded_pictures(val, like)
        return record(
            session, pictures, like.split, lambda starts: progress.track(starts, f"running {saver.path.name}")
        )


def join_records(
    base: Records, ids: Sequence[str], savers: Sequence[Records], orders: Sequence[Sequence[int] | None]
) -> Records:
    """Return records with the columns of all savers, followed by those of the base.

    Args:
        ids: ids of the savers.
        savers: their records of the same samples as the base's; the last column is the saver's own classifier.
        orders: for each saver, the index among its classes of every class of the base; None if they are the same.
    """
    joined = base
    for id, records, order in reversed(list(zip(ids, savers, orders, strict=True))):
        heads = (*((f"{id}.{exit}", type) for exit, type in records.heads), (id, BUILTIN))
        predictions = records.predictions if order is None else np.argsort(order)[records.predictions]
        joined = joined.insert(0, heads, predictions, records.scores, records.cost)
    return joined


def unseen_by(savers: Sequence[Bundle], records: Records) -> Records:
    """Return the records without the certification and test samples on which a saver was trained or tuned.

    There are such samples if a saver was exported with another seed or with other images than the base.

    Raises:
        DataError: no certification or no test samples remain.
    """
    known = [h for saver in savers for name, h in read_splits(saver).items() if name not in _HELD_OUT]
    seen = np.isin(records.hashes, np.concatenate(known)) if known else np.zeros(len(records), np.bool_)
    seen &= np.isin(records.split, _HELD_OUT)
    if not seen.any():
        return records
    log.warning("%d samples are not used to certify and test: a saver was made with them", seen.sum())
    found = records.take(~seen)
    for name in _HELD_OUT:
        if name not in found.split:
            raise DataError(
                f"the savers were made with all samples of the split {name!r} of the base",
                hint="Export savers and base with the same --val and the same --seed.",
            )
    return found


def join_vectors(base: Bundle, savers: Sequence[Bundle], networks: Sequence[Network]) -> Vectors:
    """Return test vectors for the composed bundle: those of the base, with inputs and scores of the savers added.

    A saver that reads the base's input is scored on the base's images, any other on its own. The thresholds of the
    probe for savers are near the median of their scores, as in every export.

    Args:
        networks: the savers as networks of the composed bundle.
    """
    known = read_vectors(base)
    count, inputs = len(known.logits), dict(known.inputs)
    scores: dict[tuple[str, str], NDArray[np.float32]] = {}
    probe: list[float] = []
    for saver, network in zip(savers, networks, strict=True):
        manifest = saver.manifest
        own = read_vectors(saver).inputs[manifest.input.name]
        # Images are repeated if the saver's bundle has fewer test vectors than the base's.
        images = inputs.setdefault(network.inputs[0].tensor, own[np.arange(count) % len(own)])
        with Session(saver, registry.reference().name, TargetSpec(), allow_untrained=True) as session:
            said = head_answers(session.device, manifest, {manifest.input.name: images})
        for exit, id in zip(manifest.exits, network.exits, strict=True):
            scores |= {(id, head.type): said[exit.id, head.type].score for head in exit.heads}
            probe.append(threshold_between(scores[id, exit.heads[0].type], _APART))
    thresholds = np.concatenate([np.array(probe, np.float32), known.probe])
    return Vectors(inputs, known.logits, scores | known.scores, thresholds)


def _warn_about_overlap(saver: Bundle, like: Records) -> None:
    """Warn if heads of a saver were trained on samples on which configurations are chosen."""
    shared = int(np.isin(like.hashes, read_splits(saver).get("heads", ())).sum())
    if shared and len(saver.manifest.exits) > 1:
        log.warning(
            "%d of the %d pictures from which configurations are chosen trained the heads of saver %s; it looks better "
            "than it is",
            shared,
            len(like),
            saver.manifest.model.name,
        )
