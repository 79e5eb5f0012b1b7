"""What the bundles of savers and of a base know, as one: records of the same pictures, and test vectors."""

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

# Splits whose samples nothing may have been chosen by.
_HELD_OUT = ("certification", "test")
# Confidences further apart than this are told apart by every engine.
_APART = 1e-5


def own_records(like: Records, saver: Bundle) -> Records | None:
    """What a saver's bundle has recorded of the same pictures, in the same order; None if some are missing."""
    if not saver.file(RECORDS).is_file():
        return None
    own = Records.load(saver.file(RECORDS))
    rows = {hash: row for row, hash in enumerate(own.hashes.tolist())}
    if not all(hash in rows for hash in like.hashes.tolist()):
        return None
    found = own.take(np.array([rows[hash] for hash in like.hashes.tolist()]))
    return replace(found.with_classes(labels=like.labels), hashes=like.hashes, split=like.split)


def recorded_like(like: Records, saver: Bundle, val: Dataset | None, progress: Progress) -> Records:
    """Records of a saver, of the same pictures in the same order: its own if it has them, otherwise it is run.

    Raises:
        DataError: it has to be run, and the pictures are not in ``val``.
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
    """The columns of all savers, then those of the base.

    Args:
        ids: of the savers.
        savers: of the same samples as the base's records, each with a last column for its own classifier.
        orders: for every class of the base its index among those of the saver; None if they are the same.
    """
    joined = base
    for id, records, order in reversed(list(zip(ids, savers, orders, strict=True))):
        heads = (*((f"{id}.{exit}", type) for exit, type in records.heads), (id, BUILTIN))
        predictions = records.predictions if order is None else np.argsort(order)[records.predictions]
        joined = joined.insert(0, heads, predictions, records.scores, records.cost)
    return joined


def unseen_by(savers: Sequence[Bundle], records: Records) -> Records:
    """The records without those samples that certify or test, and by which a saver was made.

    There are such samples where a saver was exported with another seed or other pictures than the base.

    Raises:
        DataError: nothing is left to certify or to test with.
    """
    known = [h for saver in savers for name, h in read_splits(saver).items() if name not in _HELD_OUT]
    seen = np.isin(records.hashes, np.concatenate(known)) if known else np.zeros(len(records), np.bool_)
    seen &= np.isin(records.split, _HELD_OUT)
    if not seen.any():
        return records
    log.warning("%d samples that would certify and test are left out: a saver was made with them", seen.sum())
    found = records.take(~seen)
    for name in _HELD_OUT:
        if name not in found.split:
            raise DataError(
                f"the savers were made with all samples of the split {name!r} of the base",
                hint="Export savers and base with the same --val and the same --seed.",
            )
    return found


def join_vectors(base: Bundle, savers: Sequence[Bundle], networks: Sequence[Network]) -> Vectors:
    """The test vectors of the base, and what every saver says of its own, or of the base's if it reads the same.

    The thresholds of the probe are medians, as in any export.
    """
    known = read_vectors(base)
    count, inputs = len(known.logits), dict(known.inputs)
    scores: dict[tuple[str, str], NDArray[np.float32]] = {}
    probe: list[float] = []
    for saver, network in zip(savers, networks, strict=True):
        manifest = saver.manifest
        own = read_vectors(saver).inputs[manifest.input.name]
        # Pictures may repeat: another export may have kept fewer.
        images = inputs.setdefault(network.inputs[0].tensor, own[np.arange(count) % len(own)])
        with Session(saver, registry.reference().name, TargetSpec(), allow_untrained=True) as session:
            said = head_answers(session.device, manifest, {manifest.input.name: images})
        for exit, id in zip(manifest.exits, network.exits, strict=True):
            scores |= {(id, head.type): said[exit.id, head.type].score for head in exit.heads}
            probe.append(threshold_between(scores[id, exit.heads[0].type], _APART))
    thresholds = np.concatenate([np.array(probe, np.float32), known.probe])
    return Vectors(inputs, known.logits, scores | known.scores, thresholds)


def _warn_about_overlap(saver: Bundle, like: Records) -> None:
    """Heads of a saver may have been fitted on what configurations are chosen from."""
    shared = int(np.isin(like.hashes, read_splits(saver).get("heads", ())).sum())
    if shared and len(saver.manifest.exits) > 1:
        log.warning(
            "%d of the %d pictures that choose configurations were fitted by the heads of saver %s; it looks better "
            "than it is",
            shared,
            len(like),
            saver.manifest.model.name,
        )
