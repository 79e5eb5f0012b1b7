"""Evaluate all settings that differ at one position (lines), from cached results before and after that position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dyce_calibration.search.problem import ExitChoice, Position, Problem, Setting, part, total_cost, total_gain
from dyce_runtime.program.rule import leaves


class Line(NamedTuple):
    """All settings that differ only in the threshold at one position.

    Attributes:
        setting: one of them; its choice at ``position`` is ignored.
        head: index of the head used at the position; None if the position is off.
    """

    setting: Setting
    position: int
    head: int | None


@dataclass(frozen=True)
class Arrived:
    """The samples that arrive at a position, and the gain and cost of those that exited before.

    Attributes:
        mask: (N,) which samples arrive.
        count: how many arrive.
        heads: cost of the heads that they have passed.
        gain, cost: sums over the samples that exited before.
    """

    mask: NDArray[np.bool_]
    count: int
    heads: float = 0.0
    gain: int = 0
    cost: float = 0.0

    @staticmethod
    def at_start(problem: Problem) -> Arrived:
        """Return all samples, before the first position."""
        return Arrived(np.ones(len(problem), np.bool_), len(problem))

    def after(self, position: Position, choice: ExitChoice, steps: int) -> Arrived:
        """Return the samples that pass a position that is on.

        Args:
            steps: steps of the gains in the problem.
        """
        head = position.heads[choice.head]
        exiting = leaves(head.score, choice.threshold)
        exiting &= self.mask
        count, heads = int(np.count_nonzero(exiting)), self.heads + head.cost
        gain = self.gain + total_gain(head.gain, exiting, steps)
        cost = self.cost + total_cost(position.paid, exiting, count) + count * heads
        return Arrived(self.mask ^ exiting, self.count - count, heads, gain, cost)

    def among(self, order: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the samples that arrive, in the order given for all samples."""
        return order if self.count == len(order) else order.take(np.flatnonzero(self.mask.take(order)))


@dataclass(frozen=True)
class Later:
    """Gain and cost of every sample if it passes a position.

    Attributes:
        gain: (N,) int8.
        cost: (N,) cost of the backbone from the start, and of the heads after that position.
    """

    gain: NDArray[np.int8]
    cost: NDArray[np.float64]

    @staticmethod
    def at_end(problem: Problem) -> Later:
        """Return the values after the last position, where the final head classifies all samples."""
        return Later(problem.full.gain, np.full(len(problem), problem.final.paid))

    def before(self, position: Position, choice: ExitChoice) -> Later:
        """Return the values for samples that arrive at a position that is on."""
        head = position.heads[choice.head]
        # Indices are faster than a mask, which costs a branch per sample.
        exiting = np.flatnonzero(leaves(head.score, choice.threshold))
        gain, cost = self.gain.copy(), self.cost + head.cost
        gain[exiting] = head.gain.take(exiting)
        cost[exiting] = part(position.paid, exiting) + head.cost
        return Later(gain, cost)


class Around(NamedTuple):
    """What the lines of one position share.

    Attributes:
        arrived: the samples that arrive at the position.
        later: gain and cost of the samples that pass it.
        gain, cost: sums over all samples if the position is off.
    """

    arrived: Arrived
    later: Later
    gain: int
    cost: float


class Walk(NamedTuple):
    """Gain and cost along one line, as the threshold falls and one sample after the other exits.

    Attributes:
        samples: (n,) the samples that arrive, the highest score first.
        gain, cost: (n,) sums over all samples if the arriving samples up to this one exit.
    """

    samples: NDArray[np.int64]
    gain: NDArray[np.int64]
    cost: NDArray[np.float64]


class _Queue(NamedTuple):
    """The samples that arrive at a head, the highest score first, and their gains there."""

    arrived: Arrived
    samples: NDArray[np.int64]
    gain: NDArray[np.int8]


class Lines:
    """Evaluates the lines of a problem, caching what consecutive lines at the same position share."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._order: dict[tuple[int, int], NDArray[np.int64]] = {}
        self._queues: dict[tuple[int, int], _Queue] = {}
        # For each number of positions, the last part of a setting that was evaluated, and its result.
        self._before: dict[int, tuple[Setting, Arrived]] = {0: ((), Arrived.at_start(problem))}
        self._after: dict[int, tuple[Setting, Later]] = {0: ((), Later.at_end(problem))}

    def around(self, setting: Setting, position: int) -> Around:
        """Evaluate a setting before and after a position."""
        arrived, later = self.before(setting[:position]), self.after(setting[position + 1 :])
        arriving = np.flatnonzero(arrived.mask)
        gain = arrived.gain + total_gain(later.gain, arrived.mask, self._problem.steps)
        cost = arrived.cost + float(later.cost.take(arriving).sum()) + arrived.count * arrived.heads
        return Around(arrived, later, gain, cost)

    def walk(self, around: Around, position: int, head: int) -> Walk:
        """Evaluate one line of a position, without the setting at which no sample exits there."""
        _, samples, gains = self._queue(around.arrived, position, head)
        gain = np.cumsum(gains - around.later.gain.take(samples), dtype=np.int64)
        gain += around.gain
        at = self._problem.positions[position]
        cost = np.cumsum(part(at.paid, samples) - around.later.cost.take(samples))
        cost += around.cost + len(samples) * at.heads[head].cost
        return Walk(samples, gain, cost)

    def before(self, first: Setting) -> Arrived:
        """Return the samples that pass the first positions if these are set to ``first``."""
        if self._before.get(len(first), (None,))[0] != first:
            arrived, choice = self.before(first[:-1]), first[-1]
            if choice is not None:
                arrived = arrived.after(self._problem.positions[len(first) - 1], choice, self._problem.steps)
            self._before[len(first)] = first, arrived
        return self._before[len(first)][1]

    def after(self, rest: Setting) -> Later:
        """Return gain and cost of samples that have only the last positions before them, set to ``rest``."""
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
            # int64, since numpy converts indices of any other type at every use.
            self._order[position, head] = np.argsort(-score, kind="stable")
        return self._order[position, head]


class Replay:
    """Evaluates many thresholds of many lines, on samples that may differ from those of the search."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._lines = Lines(problem)

    def __call__(self, line: Line, thresholds: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Evaluate thresholds of a line.

        Args:
            thresholds: (n,); ignored if the line's position is off.

        Returns:
            the gains (n,) int64, summed over the samples, and the costs (n,) float64, per sample.
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
