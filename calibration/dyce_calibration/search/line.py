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


class Replay:
    """Many thresholds of many lines on samples that need not be those searched; what lines share is done once."""

    _MOST_KEPT = 64

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._rising: dict[tuple[int, int], NDArray[np.int64]] = {}
        self._later: dict[Setting, Later] = {}

    def __call__(self, line: Line, thresholds: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Right answers and cost per sample.

        Args:
            thresholds: (n,); for a line that turns its position off they say nothing.

        Returns:
            (n,) int64 and (n,) float64.
        """
        problem, arrived = self._problem, Arrived.at_start(self._problem)
        for position, on in zip(problem.positions[: line.position], line.setting, strict=False):
            if on is not None:
                arrived.leave(position, on)
        later = self._behind(line.setting[line.position + 1 :])
        right = arrived.right + int(np.count_nonzero(later.right[arrived.mask]))
        cost = arrived.cost + float(later.cost[arrived.mask].sum()) + arrived.count * arrived.heads
        if line.head is None:
            return np.full(len(thresholds), right), np.full(len(thresholds), cost / len(problem))
        position = problem.positions[line.position]
        head = position.heads[line.head]
        order = self._from_the_least_sure(line.position, line.head)
        samples = order[arrived.mask[order]]
        gained = np.cumsum((head.correct[samples] - later.right[samples])[::-1], dtype=np.int64)
        saved = np.cumsum((position.cost - later.cost[samples])[::-1])
        leaving = len(samples) - np.searchsorted(head.confidence[samples], thresholds, side="right")
        rights = right + np.concatenate([[0], gained])[leaving]
        costs = cost + len(samples) * head.cost + np.concatenate([[0.0], saved])[leaving]
        return rights, costs / len(problem)

    def _from_the_least_sure(self, position: int, head: int) -> NDArray[np.int64]:
        if (position, head) not in self._rising:
            confidence = self._problem.positions[position].heads[head].confidence
            self._rising[position, head] = np.argsort(confidence, kind="stable")
        return self._rising[position, head]

    def _behind(self, rest: Setting) -> Later:
        """What becomes of the samples when only the positions of ``rest``, the last ones, are to come."""
        if not rest:
            return Later.at_end(self._problem)
        if rest not in self._later:
            if len(self._later) >= self._MOST_KEPT:
                self._later.clear()
            later = self._behind(rest[1:])
            position = self._problem.positions[len(self._problem.positions) - len(rest)]
            self._later[rest] = later if rest[0] is None else later.before(position, rest[0])
        return self._later[rest]
