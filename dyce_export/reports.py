"""The report of a bundle, after an export and after a search."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from dyce_calibration.records import Records
from dyce_calibration.report import (
    Contents,
    check_drawable,
    choose_examples,
    make_contents,
    mark_outdated,
    write_report,
)
from dyce_calibration.report.examples import Example
from dyce_calibration.search.costs import CostTable, costs_of, macs_of
from dyce_runtime.bundle.configuration import Configurations
from dyce_runtime.bundle.measured import read_measured
from dyce_runtime.bundle.reader import REPORT, Bundle
from dyce_runtime.bundle.test_vectors import read_vectors
from dyce_runtime.errors import BundleError, DataError, PieceError, TargetError, UsageError
from dyce_runtime.execution.contracts import TargetSpec
from dyce_runtime.execution.session import Session
from dyce_runtime.inputs.datasets import Dataset
from dyce_runtime.measure.bench import environment
from dyce_runtime.measure.piece_costs import measure_times

log = logging.getLogger("dyce_export")

# On which the pieces are timed.
_PICTURES = 8


def report_bundle(bundle: Bundle, records: Records, data: Dataset | None) -> None:
    """Write the bundle in pictures; it is left out, with a line, where the extra is not installed.

    Args:
        data: holds the pictures of the records; without all of them there are no examples.
    """
    configurations = bundle.configurations
    examples: Sequence[Example] = ()
    if data is not None and np.isin(records.hashes, data.hashes).all():
        where = {hash: row for row, hash in enumerate(data.hashes.tolist())}
        examples = choose_examples(
            records, configurations.get("balanced"), lambda row: data.images([where[int(records.hashes[row])]])[0]
        )
    try:
        check_drawable()
        contents = _contents(bundle, records, macs_of(bundle.manifest), configurations, examples)
        write_report(bundle.file(REPORT), contents)
    except UsageError as error:
        log.warning("no %s: %s. %s", REPORT, error.message, error.hint)


def renew_report(bundle: Bundle, records: Records, costs: CostTable, configurations: Configurations) -> None:
    """Write the report again, with the example pictures that it has; where it cannot be drawn, let it say so.

    Args:
        costs: those that the configurations were searched with.
    """
    path = bundle.file(REPORT)
    try:
        check_drawable()
        write_report(path, _contents(bundle, records, costs, configurations))
    except UsageError as error:
        if path.is_file():
            mark_outdated(path, error.message)
            log.warning("%s shows the search before, and now says so: %s. %s", path, error.message, error.hint)


def _contents(
    bundle: Bundle,
    records: Records,
    costs: CostTable,
    configurations: Configurations,
    examples: Sequence[Example] = (),
) -> Contents:
    manifest = bundle.manifest
    return make_contents(
        manifest.model.name,
        manifest.model.class_names,
        records,
        costs,
        configurations,
        examples,
        manifest.splits,
        manifest.suspicious,
        costs if costs.unit == "ms" else _piece_times(bundle),
        read_measured(bundle),
    )


def _piece_times(bundle: Bundle) -> CostTable | None:
    """What each piece takes here, in milliseconds, one picture per call; None where the bundle does not run."""
    try:
        inputs = read_vectors(bundle).inputs
        count = min(len(images) for images in inputs.values())
        with Session(bundle, None, TargetSpec(), allow_untrained=True) as session:
            batches = [
                {name: images[row : row + 1] for name, images in inputs.items()} for row in range(min(count, _PICTURES))
            ]
            return costs_of(measure_times(session, batches), "ms", "", environment(session))
    except (BundleError, DataError, PieceError, TargetError) as error:
        log.info("the report shows no times of the pieces: %s", error.message)
        return None
