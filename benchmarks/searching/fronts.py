"""Measures of a front, and of how it compares with another front."""

from __future__ import annotations

import numpy as np

from dyce_calibration.search.problem import Problem
from dyce_calibration.search.run import Outcome

# The hypervolume is the area above this accuracy and below a cost of 1.
REFERENCE = 0.80


def hypervolume(cost: np.ndarray, accuracy: np.ndarray) -> float:
    """Return the area between accuracy 0.80, cost 1 and the best accuracy at each cost.

    Args:
        cost, accuracy: (n,) of the points of a front, in any order.
    """
    order = np.argsort(cost)
    best, area = REFERENCE, 0.0
    for c, a in zip(cost[order], accuracy[order], strict=True):
        if a > best and c < 1:
            area += (a - best) * (1 - c)
            best = a
    return float(area)


def shortfall(exact: Outcome, cost: float, accuracy: float) -> float:
    """Return the cost of the exact front at an accuracy, minus ``cost``.

    It is 0 or less if the exact front dominates or equals the point, and infinite if it does not reach the accuracy.
    """
    at_least = exact.cost[exact.accuracy >= accuracy - 1e-12]
    return float(at_least.min() - cost) if len(at_least) else float("inf")


def cheapest_on_test(outcome: Outcome, reported_on: Problem, loss: float) -> int:
    """Return the index of the point of a front that is cheapest on other samples and loses at most ``loss`` there."""
    assert outcome.test_accuracy is not None
    assert outcome.test_cost is not None
    enough = np.flatnonzero(outcome.test_accuracy >= reported_on.accuracy - loss - 1e-12)
    return int(enough[np.argmin(outcome.test_cost[enough])])
