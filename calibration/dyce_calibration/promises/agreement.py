"""Compare the exits that samples take in two computations of a network, such as two precisions, from their records."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from dyce_calibration.records import Records
from dyce_runtime.bundle.configuration import Configuration
from dyce_runtime.program.rule import leaves


def exits_taken(records: Records, configuration: Configuration) -> NDArray[np.int64]:
    """Return (N,) int64: the column of the head at which each sample exits; the last column is the final head."""
    columns = np.full(len(records), len(records.heads), np.int64)
    remaining = np.ones(len(records), np.bool_)
    for column, (exit, head) in enumerate(records.heads):
        on = configuration.exits.get(exit)
        if on is not None and on.head == head:
            exiting = remaining & leaves(records.scores[:, column], on.threshold)
            columns[exiting] = column
            remaining &= ~exiting
    return columns


def exit_agreement(first: Records, second: Records, configurations: Iterable[Configuration]) -> float:
    """Return the fraction of samples that take the same exit in both: the lowest over the configurations, or 1.

    Args:
        first, second: records of the same samples and heads, in the same order.
    """
    shares = [
        (exits_taken(first, configuration) == exits_taken(second, configuration)).mean()
        for configuration in configurations
    ]
    return float(min(shares, default=1.0))
