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

# Number of images on which the pieces are timed.
_PICTURES = 8


def report_bundle(bundle: Bundle, records: Records, data: Dataset | None) -> None:
    """Write the HTML report of a bundle; log a warning and write none if the report extra is not installed.

    Args:
        data: contains the images of the records; unless it contains all of them, the report shows no examples.
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
    """Write the report again with its existing example images; mark it as outdated if it cannot be drawn.

    Args:
        costs: the costs with which the configurations were searched.
    """
    path = bundle.file(REPORT)
    try:
        check_drawable()
        write_report(path, _contents(bundle, records, costs, configurations))
    except UsageError as error:
        if path.is_file():
            mark_outdated(path, error.message)
            log.warning("%s shows the previous search and now says so: %s. %s", path, error.message, error.hint)


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
    """Measure each piece on this machine, in milliseconds at batch size 1; None if the bundle does not run here."""
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
