"""Whether what was recorded can be: no exit is much better than the whole model, and that as good as was claimed."""

from __future__ import annotations

from math import sqrt

import numpy as np

from dyce_calibration.records import Records
from dyce_runtime.class_order import CAUSES, FEWEST_LABELS, Doubt

# An exit may be better than the whole model by that share of the samples, or by four standard errors of it.
_MOST_BETTER = 0.05
# The whole model may be worse than was claimed by that share of the samples, or by four standard errors of it.
_MOST_WORSE = 0.10
_SURE = 4.0


def doubts_of(records: Records, claimed: float | None = None) -> tuple[Doubt, ...]:
    """What speaks against records with labels from the data. Looks at the split ``search`` alone.

    Args:
        claimed: the accuracy of the model that its checkpoint names, in [0, 1].
    """
    part = records.of_split("search")
    if len(part) < FEWEST_LABELS:
        return ()
    right = part.predictions == part.labels[:, None]
    found = [
        doubt for column, (exit, _) in enumerate(part.heads) if (doubt := _better(exit, right[:, column], right[:, -1]))
    ]
    own = float(right[:, -1].mean())
    if claimed is not None and claimed - own > max(_MOST_WORSE, _SURE * sqrt(claimed * (1 - claimed) / len(part))):
        found.append(
            Doubt(
                f"the checkpoint claims {100 * claimed:.1f} % for the model; it is right on {100 * own:.1f} % of "
                f"{len(part)} validation samples",
                f"Check {CAUSES}.",
            )
        )
    return tuple(found)


def _better(exit: str, these: np.ndarray, whole: np.ndarray) -> Doubt | None:
    """Doubt about an exit that is right (N,) where the whole model is not, far more often than the reverse."""
    gain = these.astype(float) - whole
    if not gain.mean() > max(_MOST_BETTER, _SURE * float(gain.std()) / sqrt(len(gain))):
        return None
    return Doubt(
        f"exit {exit} is right on {100 * these.mean():.1f} % of {len(gain)} validation samples and the whole model on "
        f"{100 * whole.mean():.1f} %, which an exit of a model that works does not reach",
        f"Check {CAUSES}.",
    )
