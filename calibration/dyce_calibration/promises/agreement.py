"""Whether two computations of a network take the same exits, from their records."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from dyce_calibration.records import Records
from dyce_runtime.bundle.configuration import Configuration
from dyce_runtime.program.rule import leaves


def exits_taken(records: Records, configuration: Configuration) -> NDArray[np.int64]:
    """(N,) the column of the head at which every sample leaves; the last is the model's own classifier."""
    taken = np.full(len(records), len(records.heads), np.int64)
    waiting = np.ones(len(records), np.bool_)
    for column, (exit, head) in enumerate(records.heads):
        on = configuration.exits.get(exit)
        if on is not None and on.head == head:
            leave = waiting & leaves(records.scores[:, column], on.threshold)
            taken[leave] = column
            waiting &= ~leave
    return taken


def exit_agreement(first: Records, second: Records, configurations: Iterable[Configuration]) -> float:
    """The share of samples that leave at the same exit in both; the lowest over the configurations, 1 without any."""
    shares = [
        (exits_taken(first, configuration) == exits_taken(second, configuration)).mean()
        for configuration in configurations
    ]
    return float(min(shares, default=1.0))
