"""What a front is worth, and how it compares with another."""

from __future__ import annotations

import numpy as np

from dyce_calibration.search.problem import Problem
from dyce_calibration.search.run import Outcome

# Hypervolume: the area over this accuracy and under a cost of 1.
REFERENCE = 0.80


def hypervolume(cost: np.ndarray, accuracy: np.ndarray) -> float:
    """The area between accuracy 0.80, cost 1 and the best accuracy at each cost."""
    order = np.argsort(cost)
    best, area = REFERENCE, 0.0
    for c, a in zip(cost[order], accuracy[order], strict=True):
        if a > best and c < 1:
            area += (a - best) * (1 - c)
            best = a
    return float(area)


def shortfall(exact: Outcome, cost: float, accuracy: float) -> float:
    """How much more than a point the exact front costs at that accuracy; 0 or less where it dominates or equals."""
    at_least = exact.cost[exact.accuracy >= accuracy - 1e-12]
    return float(at_least.min() - cost) if len(at_least) else float("inf")


def cheapest_on_test(outcome: Outcome, reported_on: Problem, loss: float) -> int:
    """The index of the cheapest point of a front that loses at most that on other samples; both counted there."""
    assert outcome.test_accuracy is not None
    assert outcome.test_cost is not None
    enough = np.flatnonzero(outcome.test_accuracy >= reported_on.right / len(reported_on) - loss - 1e-12)
    return int(enough[np.argmin(outcome.test_cost[enough])])
