"""One coordinate of a search: what becomes of the samples before, at and after one position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dyce_calibration.search.problem import ExitChoice, Position, Problem, Setting, part, total_cost, total_gain
from dyce_runtime.program.rule import leaves


class Line(NamedTuple):
    """All settings that differ from one another in one position only; ``head`` None turns it off."""

    setting: Setting
    position: int
    head: int | None


@dataclass(frozen=True)
class Arrived:
    """The samples that arrive at a position, what it cost them, and what those that left before gained and cost.

    Attributes:
        mask: (N,) which samples arrive; ``count`` of them.
        heads: the cost of the heads on the way.
        gain, cost: sums over the samples that left before.
    """

    mask: NDArray[np.bool_]
    count: int
    heads: float = 0.0
    gain: int = 0
    cost: float = 0.0

    @staticmethod
    def at_start(problem: Problem) -> Arrived:
        """All samples, before the first position."""
        return Arrived(np.ones(len(problem), np.bool_), len(problem))

    def after(self, position: Position, choice: ExitChoice, steps: int) -> Arrived:
        """The same after a position that is on, in a problem with that many steps."""
        head = position.heads[choice.head]
        leave = leaves(head.score, choice.threshold)
        leave &= self.mask
        count, heads = int(np.count_nonzero(leave)), self.heads + head.cost
        gain = self.gain + total_gain(head.gain, leave, steps)
        cost = self.cost + total_cost(position.paid, leave, count) + count * heads
        return Arrived(self.mask ^ leave, self.count - count, heads, gain, cost)

    def among(self, order: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of all samples that arrive, in the same order."""
        return order if self.count == len(order) else order.take(np.flatnonzero(self.mask.take(order)))


@dataclass(frozen=True)
class Later:
    """What becomes of every sample that passes a position.

    Attributes:
        gain: (N,) int8.
        cost: (N,) of backbone and heads, without the heads up to that position.
    """

    gain: NDArray[np.int8]
    cost: NDArray[np.float64]

    @staticmethod
    def at_end(problem: Problem) -> Later:
        """After the last position: the model's own classifier."""
        return Later(problem.full.gain, np.full(len(problem), problem.final.paid))

    def before(self, position: Position, choice: ExitChoice) -> Later:
        """The same for the samples that arrive at a position that is on."""
        head = position.heads[choice.head]
        # By index: of a mask, every sample is a branch.
        leave = np.flatnonzero(leaves(head.score, choice.threshold))
        gain, cost = self.gain.copy(), self.cost + head.cost
        gain[leave] = head.gain.take(leave)
        cost[leave] = part(position.paid, leave) + head.cost
        return Later(gain, cost)


class Around(NamedTuple):
    """What the lines of one position share: what lies on both sides of it, and both sums where it is off."""

    arrived: Arrived
    later: Later
    gain: int
    cost: float


class Walk(NamedTuple):
    """What one line reaches when one sample after the other leaves there.

    Attributes:
        samples: (n,) those that arrive, the highest score first.
        gain, cost: (n,) sums over all samples when those up to this one leave.
    """

    samples: NDArray[np.int64]
    gain: NDArray[np.int64]
    cost: NDArray[np.float64]


class _Queue(NamedTuple):
    """Samples that arrive at a head, the highest score first, and what each of them gains there."""

    arrived: Arrived
    samples: NDArray[np.int64]
    gain: NDArray[np.int8]


class Lines:
    """The lines of a problem, walked along. What a line shares with the last one at the same place is done once."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._order: dict[tuple[int, int], NDArray[np.int64]] = {}
        self._queues: dict[tuple[int, int], _Queue] = {}
        # The last of each length, with what it was found for.
        self._before: dict[int, tuple[Setting, Arrived]] = {0: ((), Arrived.at_start(problem))}
        self._after: dict[int, tuple[Setting, Later]] = {0: ((), Later.at_end(problem))}

    def around(self, setting: Setting, position: int) -> Around:
        """Both sides of a position."""
        arrived, later = self.before(setting[:position]), self.after(setting[position + 1 :])
        waiting = np.flatnonzero(arrived.mask)
        gain = arrived.gain + total_gain(later.gain, arrived.mask, self._problem.steps)
        cost = arrived.cost + float(later.cost.take(waiting).sum()) + arrived.count * arrived.heads
        return Around(arrived, later, gain, cost)

    def walk(self, around: Around, position: int, head: int) -> Walk:
        """One line of a position, without the setting where no sample leaves."""
        _, samples, gains = self._queue(around.arrived, position, head)
        gain = np.cumsum(gains - around.later.gain.take(samples), dtype=np.int64)
        gain += around.gain
        at = self._problem.positions[position]
        cost = np.cumsum(part(at.paid, samples) - around.later.cost.take(samples))
        cost += around.cost + len(samples) * at.heads[head].cost
        return Walk(samples, gain, cost)

    def before(self, first: Setting) -> Arrived:
        """The samples that pass the first positions, which are set like that."""
        if self._before.get(len(first), (None,))[0] != first:
            arrived, choice = self.before(first[:-1]), first[-1]
            if choice is not None:
                arrived = arrived.after(self._problem.positions[len(first) - 1], choice, self._problem.steps)
            self._before[len(first)] = first, arrived
        return self._before[len(first)][1]

    def after(self, rest: Setting) -> Later:
        """What becomes of the samples when only the last positions are to come, which are set like that."""
        if self._after.get(len(rest), (None,))[0] != rest:
            later, choice = self.after(rest[1:]), rest[0]
            if choice is not None:
                later = later.before(self._problem.positions[-len(rest)], choice)
            self._after[len(rest)] = rest, later
        return self._after[len(rest)][1]

    def _queue(self, arrived: Arrived, position: int, head: int) -> _Queue:
        queue = self._queues.get((position, head))
        if queue is None or queue.arrived is not arrived:
            samples = arrived.among(self._falling(position, head))
            gain = self._problem.positions[position].heads[head].gain.take(samples)
            queue = self._queues[position, head] = _Queue(arrived, samples, gain)
        return queue

    def _falling(self, position: int, head: int) -> NDArray[np.int64]:
        if (position, head) not in self._order:
            score = self._problem.positions[position].heads[head].score
            # int64: numpy converts indices of any other type at every use.
            self._order[position, head] = np.argsort(-score, kind="stable")
        return self._order[position, head]


class Replay:
    """Many thresholds of many lines on samples that need not be those searched."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._lines = Lines(problem)

    def __call__(self, line: Line, thresholds: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Gain, summed over the samples, and cost per sample.

        Args:
            thresholds: (n,); for a line that turns its position off they say nothing.

        Returns:
            (n,) int64 and (n,) float64.
        """
        around = self._lines.around(line.setting, line.position)
        if line.head is None:
            return np.full(len(thresholds), around.gain), np.full(len(thresholds), around.cost / len(self._problem))
        head = self._problem.positions[line.position].heads[line.head]
        samples, gain, cost = self._lines.walk(around, line.position, line.head)
        leaving = np.searchsorted(-head.score[samples], -thresholds)
        gains = np.concatenate([[around.gain], gain])[leaving]
        costs = np.concatenate([[around.cost + len(samples) * head.cost], cost])[leaving]
        return gains, costs / len(self._problem)
