"""Where verification sets thresholds: between confidences that rounding cannot take for each other."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from dyce_runtime.bundle.configuration import float32_midpoint
from dyce_runtime.bundle.test_vectors import spread

Floats = NDArray[np.float32]

#: Nothing leaves at this threshold: no confidence is larger.
NONE_LEAVE = 1.0
# Of the samples; each threshold may leave that many in doubt.
_MOST_IN_DOUBT = 1 / 8
# A softmax in float32 may be off by this much whatever its input: a few units in the last place of 1.
_SOFTMAX_ROUNDING = 3e-7


def doubts(confidences: Floats, logits: Floats, temperature: float, error: float) -> NDArray[np.float64]:
    """(N,) how far each confidence may move when the logits have this relative error.

    A logit is then off by up to ``error * spread(logits)``; that moves the log-odds of the largest by up to twice as
    much over the temperature, and the confidence p by p (1 - p) times that.

    Args:
        confidences: (N,), softmax(logits / temperature) of the largest logit.
        logits: (N, classes).
        error: see :func:`dyce_runtime.bundle.test_vectors.relative_error`.
    """
    odds = 2 * error * spread(logits) / temperature
    p = confidences.astype(np.float64)
    return p * (1 - p) * odds + _SOFTMAX_ROUNDING


def threshold_between(confidences: Floats, doubts: NDArray[np.float64] | float) -> float:
    """The threshold nearest to the median that leaves no sample in doubt; failing that, one that leaves few.

    Args:
        confidences: (N,).
        doubts: (N,) or one for all; a sample whose confidence is at most that far from the threshold is in doubt.

    Returns:
        :data:`NONE_LEAVE` if every threshold would leave too many in doubt, as where all confidences are equal.
    """
    values = np.unique(confidences)
    if len(values) < 2:
        return NONE_LEAVE
    middles = np.array([float32_midpoint(low, high) for low, high in pairwise(values.tolist())])
    in_doubt = (np.abs(confidences - middles[:, None]) <= doubts).sum(axis=1)
    if in_doubt.min() > _MOST_IN_DOUBT * len(confidences):
        return NONE_LEAVE
    usable = in_doubt <= (_MOST_IN_DOUBT * len(confidences) if in_doubt.all() else 0)
    off_median = np.abs((confidences <= middles[:, None]).mean(axis=1) - 0.5)
    return float(middles[np.where(usable, off_median, np.inf).argmin()])


def all_leave(confidences: Floats) -> float:
    """A threshold far below all of these."""
    return float(np.float32(confidences.min() / 2))
