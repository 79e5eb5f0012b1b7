"""Choosing thresholds for verification: between confidences that rounding cannot confuse."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from dyce_runtime.bundle.configuration import float32_midpoint
from dyce_runtime.bundle.test_vectors import spread

Floats = NDArray[np.float32]

#: No sample exits at this threshold: no confidence is larger.
NONE_LEAVE = 1.0
# Largest share of samples that a threshold may leave in doubt.
_MOST_IN_DOUBT = 1 / 8
# Error of a float32 softmax whatever its input: a few units in the last place of 1.
_SOFTMAX_ROUNDING = 3e-7


def doubts(confidences: Floats, logits: Floats, temperature: float, error: float) -> NDArray[np.float64]:
    """Return (N,): how far each confidence may move if the logits have the given relative error.

    A logit is then off by up to ``error * spread(logits)``; that moves the log-odds of the largest by up to twice as
    much over the temperature, and the confidence p by p (1 - p) times that.

    Args:
        confidences: (N,), the largest of softmax(logits / temperature).
        logits: (N, classes).
        error: see :func:`dyce_runtime.bundle.test_vectors.relative_error`.
    """
    odds = 2 * error * spread(logits) / temperature
    p = confidences.astype(np.float64)
    return p * (1 - p) * odds + _SOFTMAX_ROUNDING


def threshold_between(confidences: Floats, doubts: NDArray[np.float64] | float) -> float:
    """Return the threshold nearest to the median that leaves no sample in doubt, or else the one that leaves few.

    Args:
        confidences: (N,).
        doubts: (N,), or one number for all; a sample is in doubt if its confidence is at most that far from the
            threshold.

    Returns:
        the threshold, or :data:`NONE_LEAVE` if every threshold would leave too many samples in doubt, for instance
        because all confidences are equal.
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
    """Return a threshold far below all of these confidences."""
    return float(np.float32(confidences.min() / 2))
