"""A bundle's network in a lower precision, written as a bundle of its own.

Records, configurations and promises depend on the precision, so all of them are made again with the lowered pieces.
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
from dyce_export.graph.joining import Network, assemble
from dyce_export.graph.spans import write_spans
from dyce_export.precision.half import halver
from dyce_export.precision.integers import quantiser
from dyce_export.precision.trials import Bench, Change, Limits, Method, best_trial
from dyce_export.progress import Progress
from dyce_export.writing.bundle_writer import seal
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

# Default target with which records are made: it runs everywhere.
TARGET = "onnxruntime"
# Number of samples on which other targets are compared.
_FEW = 1000
LOWER = ("bfloat16", "float16", "int8", "uint8")
# Precisions that need no other graph: an engine computes float32 graphs in them.
_COMPUTED_BY = {"bfloat16": "openvino"}
# Number of images that set the ranges of integers.
_CALIBRATION = 256


def check_precisions(precisions: Sequence[str]) -> None:
    """Raise UsageError for a precision that does not exist or is named twice."""
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
    """Add bundles of the same network in other precisions; return the manifest that names them.

    Args:
        bundle: float32 bundle with trained heads and records; the new bundles are written into its folder.
        data: images that set the ranges of integers.
        val: contains the images of the bundle's records.
        target: runs the pieces when records are made.

    Raises:
        DataError: ``val`` lacks recorded images, or no image is available to set the ranges of integers.
        VerificationError: a precision changes more than the limits allow, whichever segments stay in float32.
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
        log.warning("%s on the test samples, which were not used to choose segments: %s", method.precision, change)
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
    """Return the method that lowers the network to a precision."""
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
    """Return the rows of images that set the ranges of integers.

    Images without records are preferred, then images that were used to choose configurations. To avoid reading all of
    a large data set, a subset is tried first.

    Raises:
        DataError: all images are used for certification or testing.
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
            f"every picture of {data.source} is used to certify or test the bundle, so that none is available to set "
            "the ranges of integers",
            hint="Give the pictures with which the bundle was exported as --data.",
        )
    return usable[spread_rows(usable, _CALIBRATION)]


def _mismatch_rates(bundle: Bundle, records: Records, pictures: Dataset, recorded_in: str) -> dict[str, float]:
    """Measure the share of samples whose exit differs from the records, by CPU target that works on this machine."""
    rows = np.flatnonzero(records.split == "test")[:_FEW]
    expected, shown = records.take(rows), pictures.take(rows)
    named = [bundle.configuration(name) for name in bundle.configurations.named]
    found = {}
    for name in registry.working():
        if name == recorded_in or registry.get(name).engines:
            continue
        # A target may not support the precision or fail in a piece; only this comparison needs it.
        with suppress(TargetError, BundleError, PieceError), Session(bundle, name, TargetSpec()) as session:
            found[name] = 1 - exit_agreement(expected, record(session, shown, expected.split), named)
    return found


def _write_test_vectors(before: Bundle, after: Bundle, target: str) -> float:
    """Write the outputs of the lowered pieces for the test vectors; return their relative error against float32."""
    expected = read_vectors(before)
    with Session(after, target, TargetSpec()) as session:
        found = answered(expected, session)
    write_vectors(found, after)
    return relative_error(expected.logits, found.logits, expected.logits)
