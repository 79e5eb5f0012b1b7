"""Whether what was recorded can be: no exit is much better than the whole model."""

from __future__ import annotations

from math import sqrt

import numpy as np

from dyce_calibration.records import Records
from dyce_runtime.inputs.class_order import CAUSES, FEWEST_LABELS, Doubt

# An exit may be better than the whole model by that share of the samples, or by four standard errors of it.
_MOST_BETTER = 0.05
_SURE = 4.0


def doubts_of(records: Records) -> tuple[Doubt, ...]:
    """What speaks against records with labels from the data. Looks at the split ``search`` alone."""
    part = records.of_split("search")
    if len(part) < FEWEST_LABELS:
        return ()
    right = 1 - part.loss
    better = (_better(exit, right[:, column], right[:, -1]) for column, (exit, _) in enumerate(part.heads))
    return tuple(filter(None, better))


def _better(exit: str, these: np.ndarray, whole: np.ndarray) -> Doubt | None:
    """Doubt about an exit that is right (N,) where the whole model is not, far more often than the reverse."""
    gain = these.astype(np.float64) - whole
    if not gain.mean() > max(_MOST_BETTER, _SURE * float(gain.std()) / sqrt(len(gain))):
        return None
    return Doubt(
        f"exit {exit} is right on {100 * these.mean():.1f} % of {len(gain)} validation samples and the whole model on "
        f"{100 * whole.mean():.1f} %, which an exit of a model that works does not reach",
        f"Check {CAUSES}.",
    )
