"""One coordinate of a search: what becomes of the samples before, at and behind one position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dyce_calibration.search.problem import On, Position, Problem, Setting
from dyce_runtime.program.rule import leaves


class Line(NamedTuple):
    """All settings that differ from one another in one position only; ``head`` None turns it off."""

    setting: Setting
    position: int
    head: int | None


@dataclass(frozen=True)
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

    def behind(self, position: Position, on: On) -> Arrived:
        """The same behind a position that is on."""
        head = position.heads[on.head]
        leave = leaves(head.confidence, on.threshold)
        leave &= self.mask
        count, heads = int(np.count_nonzero(leave)), self.heads + head.cost
        right = self.right + int(np.count_nonzero(head.correct & leave))
        return Arrived(self.mask ^ leave, self.count - count, heads, right, self.cost + count * (position.cost + heads))

    def among(self, order: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of all samples that arrive, in the same order."""
        return order if self.count == len(order) else order.take(np.flatnonzero(self.mask.take(order)))


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
        # By index: of a mask, every sample is a branch.
        leave = np.flatnonzero(leaves(head.confidence, on.threshold))
        right, cost = self.right.copy(), self.cost + head.cost
        right[leave] = head.correct.take(leave)
        cost[leave] = position.cost + head.cost
        return Later(right, cost)


class Around(NamedTuple):
    """What the lines of one position share: what lies on both sides of it, and both sums where it is off."""

    arrived: Arrived
    later: Later
    right: int
    cost: float


class Walk(NamedTuple):
    """What one line reaches when one sample after the other leaves there.

    Attributes:
        samples: (n,) those that arrive, the most confident first.
        right, cost: (n,) sums over all samples when those up to this one leave.
    """

    samples: NDArray[np.int64]
    right: NDArray[np.int64]
    cost: NDArray[np.float64]


class _Queue(NamedTuple):
    """Samples that arrive at a head, the most confident first, and for which of them it is right."""

    arrived: Arrived
    samples: NDArray[np.int64]
    correct: NDArray[np.int8]


class Lines:
    """The lines of a problem, walked along. What a line shares with the last one at the same place is done once."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._order: dict[tuple[int, int], NDArray[np.int64]] = {}
        self._queues: dict[tuple[int, int], _Queue] = {}
        # The last of each length, with what it was found for.
        self._before: dict[int, tuple[Setting, Arrived]] = {0: ((), Arrived.at_start(problem))}
        self._behind: dict[int, tuple[Setting, Later]] = {0: ((), Later.at_end(problem))}

    def around(self, setting: Setting, position: int) -> Around:
        """Both sides of a position."""
        arrived, later = self.before(setting[:position]), self.behind(setting[position + 1 :])
        right = arrived.right + int(np.count_nonzero(later.right & arrived.mask))
        waiting = later.cost.take(np.flatnonzero(arrived.mask))
        return Around(arrived, later, right, arrived.cost + float(waiting.sum()) + arrived.count * arrived.heads)

    def walk(self, around: Around, position: int, head: int) -> Walk:
        """One line of a position, without the setting where no sample leaves."""
        _, samples, correct = self._queue(around.arrived, position, head)
        right = np.cumsum(correct - around.later.right.take(samples), dtype=np.int64)
        right += around.right
        at = self._problem.positions[position]
        cost = np.cumsum(at.cost - around.later.cost.take(samples))
        cost += around.cost + len(samples) * at.heads[head].cost
        return Walk(samples, right, cost)

    def before(self, first: Setting) -> Arrived:
        """The samples that pass the first positions, which are set like that."""
        if self._before.get(len(first), (None,))[0] != first:
            arrived, on = self.before(first[:-1]), first[-1]
            if on is not None:
                arrived = arrived.behind(self._problem.positions[len(first) - 1], on)
            self._before[len(first)] = first, arrived
        return self._before[len(first)][1]

    def behind(self, rest: Setting) -> Later:
        """What becomes of the samples when only the last positions are to come, which are set like that."""
        if self._behind.get(len(rest), (None,))[0] != rest:
            later, on = self.behind(rest[1:]), rest[0]
            if on is not None:
                later = later.before(self._problem.positions[-len(rest)], on)
            self._behind[len(rest)] = rest, later
        return self._behind[len(rest)][1]

    def _queue(self, arrived: Arrived, position: int, head: int) -> _Queue:
        queue = self._queues.get((position, head))
        if queue is None or queue.arrived is not arrived:
            samples = arrived.among(self._falling(position, head))
            correct = self._problem.positions[position].heads[head].correct.take(samples)
            queue = self._queues[position, head] = _Queue(arrived, samples, correct)
        return queue

    def _falling(self, position: int, head: int) -> NDArray[np.int64]:
        if (position, head) not in self._order:
            confidence = self._problem.positions[position].heads[head].confidence
            # int64: numpy converts indices of any other type at every use.
            self._order[position, head] = np.argsort(-confidence, kind="stable")
        return self._order[position, head]


class Replay:
    """Many thresholds of many lines on samples that need not be those searched."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._lines = Lines(problem)

    def __call__(self, line: Line, thresholds: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Right answers and cost per sample.

        Args:
            thresholds: (n,); for a line that turns its position off they say nothing.

        Returns:
            (n,) int64 and (n,) float64.
        """
        around = self._lines.around(line.setting, line.position)
        if line.head is None:
            return np.full(len(thresholds), around.right), np.full(len(thresholds), around.cost / len(self._problem))
        head = self._problem.positions[line.position].heads[line.head]
        samples, right, cost = self._lines.walk(around, line.position, line.head)
        leaving = np.searchsorted(-head.confidence[samples], -thresholds)
        rights = np.concatenate([[around.right], right])[leaving]
        costs = np.concatenate([[around.cost + len(samples) * head.cost], cost])[leaving]
        return rights, costs / len(self._problem)
