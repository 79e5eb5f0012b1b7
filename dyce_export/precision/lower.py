"""A bundle's network in a lower precision: a bundle of its own.

What is recorded, chosen and promised depends on the precision, so all of it is done again, with the pieces that run.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from dyce_calibration.promises.agreement import exit_agreement
from dyce_calibration.promises.choose import choose
from dyce_calibration.recorder import record, recorded_pictures, write_records
from dyce_calibration.records import Records
from dyce_calibration.search.costs import macs_again
from dyce_export.bundle_writer import seal
from dyce_export.graph.joining import Network, assemble
from dyce_export.graph.spans import write_spans
from dyce_export.precision.half import halver
from dyce_export.precision.integers import quantiser
from dyce_export.precision.trials import Bench, Change, Limits, Method, best_trial
from dyce_export.progress import Progress
from dyce_runtime.bundle.manifest import Lowering, Manifest
from dyce_runtime.bundle.reader import (
    PRECISIONS,
    RECORDS,
    Bundle,
)
from dyce_runtime.bundle.test_vectors import answered, read_vectors, relative_error, write_vectors
from dyce_runtime.errors import BundleError, DataError, PieceError, TargetError, UsageError
from dyce_runtime.execution.contracts import TargetSpec
from dyce_runtime.execution.session import Session
from dyce_runtime.inputs.datasets import Dataset
from dyce_runtime.inputs.preprocessing import preprocess
from dyce_runtime.measure.bench import spread_rows
from dyce_runtime.targets import registry

log = logging.getLogger("dyce_export")

# What records are made with where nobody says: it runs everywhere.
TARGET = "onnxruntime"
# Samples that say how another engine differs.
_FEW = 1000
LOWER = ("bfloat16", "float16", "int8", "uint8")
# Not a matter of graphs: an engine computes those of float32 in it.
_COMPUTED_BY = {"bfloat16": "openvino"}
# Pictures that set the ranges of integers.
_CALIBRATION = 256


def check_precisions(precisions: Sequence[str]) -> None:
    """Raise UsageError for a precision that does not exist, or is named twice."""
    for name in precisions:
        if name not in LOWER:
            raise UsageError(
                f"there is no precision {name!r} to lower to; there are {', '.join(LOWER)}",
                hint="float32 is always in a bundle.",
            )
    if len(set(precisions)) < len(precisions):
        raise UsageError(f"the precisions are {', '.join(precisions)}; expected each once")


def add(
    bundle: Bundle,
    precisions: Sequence[str],
    data: Dataset,
    val: Dataset,
    limits: Limits,
    progress: Progress,
    target: str = TARGET,
) -> Manifest:
    """Add bundles of the same network in other precisions; returns the manifest that names them.

    Args:
        bundle: in float32, with trained heads and records; it is written to.
        data: pictures that set the ranges of integers.
        val: holds the pictures of the bundle's records.
        target: what runs the pieces when records are made.

    Raises:
        DataError: ``val`` lacks some of the recorded pictures.
        VerificationError: one changes more than the limits allow, whichever segments stay in float32.
    """
    known = Records.load(bundle.file(RECORDS))
    pictures, network = recorded_pictures(val, known), assemble(bundle)
    for precision in precisions:
        with progress.stage(precision):
            folder = bundle.path / PRECISIONS / precision
            folder.mkdir(parents=True)
            method = _method(precision, network, data, known, target)
            _lower(bundle, method, known, pictures, folder, limits, progress)
    both = dict.fromkeys((*bundle.manifest.precisions, *precisions))
    return msgspec.structs.replace(bundle.manifest, precisions=tuple(both))


def _lower(
    bundle: Bundle,
    method: Method,
    known: Records,
    pictures: Dataset,
    folder: Path,
    limits: Limits,
    progress: Progress,
) -> None:
    bench = Bench(bundle, method, known, pictures, folder)
    trial = best_trial(bench, known.split, limits, progress)
    change = Change.between(known.of_split("test"), trial.records.of_split("test"), bench.named)
    if not change.within(limits):
        log.warning("%s on the test samples, by which no segment was chosen: %s", method.precision, change)
    configurations = choose(trial.records, macs_again(trial.manifest, bundle.configurations))
    manifest = msgspec.structs.replace(
        trial.manifest, pieces=(*trial.manifest.pieces, *write_spans(trial.manifest, configurations, folder))
    )
    made = Bundle(folder, manifest, configurations)
    lowering = Lowering(
        kept=trial.kept,
        calibration=method.calibration,
        logits_error=_write_test_vectors(bundle, made, method.target),
        exit_agreement=change.agreement,
        accuracy=change.now,
        accuracy_float32=change.before,
        samples=int((known.split == "test").sum()),
        target=method.target,
        exit_mismatch_rate=_mismatch_rates(made, trial.records, pictures, method.target),
    )
    write_records(trial.records, bundle, folder)
    seal(folder, msgspec.structs.replace(manifest, lowering=lowering), configurations)


def _method(precision: str, network: Network, data: Dataset, known: Records, target: str) -> Method:
    """What lowers the network."""
    if precision in _COMPUTED_BY:
        return Method(precision, network, lambda kept: network.model, _COMPUTED_BY[precision], divisible=False)
    if precision == "float16":
        return Method(precision, network, halver(network), target)
    rows = _range_rows(data, known)
    ways = network.manifest.inputs
    inputs = {name: preprocess(data.images(rows), way) for name, way in ways.items()}
    convert = quantiser(network, inputs, "int8" if precision == "int8" else "uint8")
    return Method(precision, network, convert, target, calibration=len(rows))


def _range_rows(data: Dataset, known: Records) -> NDArray[np.int64]:
    """Pictures that set the ranges of integers: such as were not recorded, or else took part in choosing.

    Most of many pictures are not even read. Raises DataError if there is no such picture.
    """
    for most in (4 * _CALIBRATION, len(data)):
        rows = spread_rows(data, most)
        hashes = data.take(rows).hashes
        fresh = rows[~np.isin(hashes, known.hashes)]
        if len(fresh) >= _CALIBRATION:
            break
    kept = known.hashes[np.isin(known.split, ("certification", "test"))]
    usable = fresh if len(fresh) else rows[~np.isin(hashes, kept)]
    if len(usable) == 0:
        raise DataError(
            f"every picture of {data.source} is one by which the bundle is certified or tested, and none is left to "
            "set the ranges of integers",
            hint="Give the pictures with which the bundle was exported as --data.",
        )
    return usable[spread_rows(usable, _CALIBRATION)]


def _mismatch_rates(bundle: Bundle, records: Records, pictures: Dataset, recorded_in: str) -> dict[str, float]:
    """How the other CPU targets that work here differ from the records, under the named configurations."""
    rows = np.flatnonzero(records.split == "test")[:_FEW]
    expected, shown = records.take(rows), pictures.take(rows)
    named = [bundle.configuration(name) for name in bundle.configurations.named]
    found = {}
    for name in registry.working():
        if name == recorded_in or registry.get(name).engines:
            continue
        # It may not compute in that precision, refuse a piece or fail in one: nothing but this comparison needs it.
        with suppress(TargetError, BundleError, PieceError), Session(bundle, name, TargetSpec()) as session:
            found[name] = 1 - exit_agreement(expected, record(session, shown, expected.split), named)
    return found


def _write_test_vectors(before: Bundle, after: Bundle, target: str) -> float:
    """What the pieces say of the bundle's test vectors; returns how far that is from float32."""
    expected = read_vectors(before)
    with Session(after, target, TargetSpec()) as session:
        found = answered(expected, session)
    write_vectors(found, after)
    return relative_error(expected.logits, found.logits, expected.logits)
