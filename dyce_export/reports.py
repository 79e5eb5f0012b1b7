"""The report of a bundle that was just made."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from dyce_calibration.costs import macs_of
from dyce_calibration.records import Records
from dyce_calibration.report import choose_examples, make_contents, write_report
from dyce_calibration.report.examples import Example
from dyce_runtime.bundle import REPORT, Bundle
from dyce_runtime.datasets import Dataset
from dyce_runtime.errors import UsageError

log = logging.getLogger("dyce_export")


def report_bundle(bundle: Bundle, records: Records, data: Dataset | None) -> None:
    """Write the bundle in pictures; it is left out, with a line, where the extra is not installed.

    Args:
        data: holds the pictures of the records; without all of them there are no examples.
    """
    model, configurations = bundle.manifest.model, bundle.configurations
    examples: Sequence[Example] = ()
    if data is not None and np.isin(records.hashes, data.hashes).all():
        where = {hash: row for row, hash in enumerate(data.hashes.tolist())}
        examples = choose_examples(
            records, configurations.get("balanced"), lambda row: data.images([where[int(records.hashes[row])]])[0]
        )
    contents = make_contents(
        model.name,
        model.class_names,
        records,
        macs_of(bundle.manifest),
        configurations,
        examples,
        bundle.manifest.splits,
        bundle.manifest.suspicious,
    )
    try:
        write_report(bundle.file(REPORT), contents)
    except UsageError as error:
        log.warning("no %s: %s. %s", REPORT, error.message, error.hint)
