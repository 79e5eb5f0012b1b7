"""Check whether records are plausible: no exit is much more accurate than the whole model."""

from __future__ import annotations

from math import sqrt

import numpy as np

from dyce_calibration.records import Records
from dyce_runtime.inputs.class_order import CAUSES, FEWEST_LABELS, Doubt

# An exit may be more accurate than the whole model by this fraction of the samples, or by four standard errors.
_MOST_BETTER = 0.05
_SURE = 4.0


def doubts_of(records: Records) -> tuple[Doubt, ...]:
    """Return a doubt for each exit that is implausibly accurate, by the samples of the split ``search`` only.

    Args:
        records: with labels from the data, not predictions of the base.
    """
    part = records.of_split("search")
    if len(part) < FEWEST_LABELS:
        return ()
    right = 1 - part.loss
    better = (_better(exit, right[:, column], right[:, -1]) for column, (exit, _) in enumerate(part.heads))
    return tuple(filter(None, better))


def _better(exit: str, these: np.ndarray, whole: np.ndarray) -> Doubt | None:
    """Return the doubt about an exit that is far more often right than the whole model; None if it is not.

    Args:
        these, whole: (N,) 1 - loss of the exit and of the whole model on each sample.
    """
    gain = these.astype(np.float64) - whole
    if not gain.mean() > max(_MOST_BETTER, _SURE * float(gain.std()) / sqrt(len(gain))):
        return None
    return Doubt(
        f"exit {exit} is right on {100 * these.mean():.1f} % of {len(gain)} validation samples and the whole model on "
        f"{100 * whole.mean():.1f} %, which is implausible for an exit of a model that works",
        f"Check {CAUSES}.",
    )
