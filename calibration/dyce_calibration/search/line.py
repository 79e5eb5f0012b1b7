"""One coordinate of a search: what becomes of the samples before, at and behind one position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dyce_calibration.search.problem import On, Position, Problem, Setting


class Line(NamedTuple):
    """All settings that differ from one another in one position only; ``head`` None turns it off."""

    setting: Setting
    position: int
    head: int | None


@dataclass
class Arrived:
    """The samples that arrive at a position, what it cost them, and what those that left before gave and cost.

    Attributes:
        mask: (N,) which samples arrive; ``count`` of them.
        heads: the cost of the heads on the way.
        right, cost: sums over the samples that left before.
    """

    mask: NDArray[np.bool_]
    count: int
    heads: float = 0.0
    right: int = 0
    cost: float = 0.0

    @staticmethod
    def at_start(problem: Problem) -> Arrived:
        """All samples, before the first position."""
        return Arrived(np.ones(len(problem), np.bool_), len(problem))

    def leave(self, position: Position, on: On) -> None:
        """Go on to behind a position that is on."""
        head = position.heads[on.head]
        leave = head.confidence > np.float32(on.threshold)
        leave &= self.mask
        count = int(np.count_nonzero(leave))
        self.heads += head.cost
        self.right += int(np.count_nonzero(head.correct[leave]))
        self.cost += count * (position.cost + self.heads)
        self.mask ^= leave
        self.count -= count


@dataclass(frozen=True)
class Later:
    """What becomes of every sample that passes a position.

    Attributes:
        right: (N,) int8.
        cost: (N,) of backbone and heads, without the heads up to that position.
    """

    right: NDArray[np.int8]
    cost: NDArray[np.float64]

    @staticmethod
    def at_end(problem: Problem) -> Later:
        """Behind the last position: the model's own classifier."""
        return Later(problem.correct, np.full(len(problem), problem.cost))

    def before(self, position: Position, on: On) -> Later:
        """The same for the samples that arrive at a position that is on."""
        head = position.heads[on.head]
        leave = head.confidence > np.float32(on.threshold)
        cost = np.where(leave, position.cost, self.cost)
        cost += head.cost
        return Later(np.where(leave, head.correct, self.right), cost)


def replay(
    problem: Problem, line: Line, thresholds: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Right answers and cost per sample of many thresholds of one line, on samples that need not be those searched.

    Args:
        thresholds: (n,); for a line that turns its position off they say nothing.

    Returns:
        (n,) int64 and (n,) float64.
    """
    arrived, later = Arrived.at_start(problem), Later.at_end(problem)
    pairs = list(zip(problem.positions, line.setting, strict=True))
    for position, on in pairs[: line.position]:
        if on is not None:
            arrived.leave(position, on)
    for position, on in pairs[: line.position : -1]:
        if on is not None:
            later = later.before(position, on)
    samples = np.flatnonzero(arrived.mask)
    right = arrived.right + int(np.count_nonzero(later.right[samples]))
    cost = arrived.cost + float(later.cost[samples].sum()) + len(samples) * arrived.heads
    if line.head is None:
        return np.full(len(thresholds), right), np.full(len(thresholds), cost / len(problem))
    position = problem.positions[line.position]
    head = position.heads[line.head]
    samples = samples[np.argsort(head.confidence[samples])]  # from the least confident: who stays for longest
    gained = np.cumsum((head.correct[samples] - later.right[samples])[::-1], dtype=np.int64)
    saved = np.cumsum((position.cost - later.cost[samples])[::-1])
    leaving = len(samples) - np.searchsorted(head.confidence[samples], thresholds, side="right")
    rights = right + np.concatenate([[0], gained])[leaving]
    costs = cost + len(samples) * head.cost + np.concatenate([[0.0], saved])[leaving]
    return rights, costs / len(problem)
