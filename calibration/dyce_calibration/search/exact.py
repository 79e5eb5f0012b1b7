"""Exact search: along every coordinate the whole line of thresholds at once, until no single change helps.

With all other positions fixed, let those k arriving samples leave at a position whose scores are the highest. Gain
(1 - loss, as a sum over the samples) and cost are then prefix sums over the arriving samples in order of their scores:
one pass gives every setting of that line, exactly. All of them are offered to one front, which is therefore far denser
than one optimum per weight.

The objective is that of DyCE (arXiv 2403.01695): weight * (1 - accuracy / base accuracy) + (1 - weight) * cost, where
accuracy is the mean gain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dyce_calibration.search.front import Front
from dyce_calibration.search.line import Line, Lines, Walk
from dyce_calibration.search.problem import ExitChoice, Head, Problem, Setting, total_gain

# How many scores a search looks at: one sweep looks at samples x heads of them. First the weights are solved.
_MOST_FOR_WEIGHTS = 1_000_000_000
# Then come restarts: many where they are cheap, and where there are many heads to choose from, as local optima multiply
# with these.
_CHEAP = 8_000_000
_MOST_CHEAP_SWEEPS = 1600
_SWEEPS_PER_HEADS_4 = 1 / 2000
_MOST_FOR_RESTARTS = 1_000_000_000
_SHARE_OF_NEIGHBOURS = 0.2
_SWEEPS_OF_A_RESTART = 3
_CHANGED_BY_A_RESTART = 2
_SPLICED = 0.6
_RESTARTS_OF_A_ROUND = 32
# Sums in another order differ in their last bits; that is no improvement. More than the front's own measure for it.
_SAME_SCORE = 1e-9


@dataclass(frozen=True)
class Found:
    """The front, and for how many of the weights no single change of its best setting helps any more."""

    front: Front
    solved: int


def search(
    problem: Problem, weights: Sequence[float], seed: int = 0, *, around: bool = True, share: float = 1.0
) -> Found:
    """Search with every weight in turn, then around the front.

    Args:
        weights: of the accuracy, from 0 to 1.
        seed: of the restarts.
        around: False leaves out the second part.
        share: of the most work that one search may take, a count of the scores that it looks at.
    """
    heads = max(1, sum(len(position.heads) for position in problem.positions))
    of_a_sweep = len(problem) * heads
    searcher = _Searcher(problem)
    solved = searcher.solve(_coarse_to_fine(weights), max(1, int(share * _MOST_FOR_WEIGHTS) // of_a_sweep))
    if around:
        sweeps = _sweeps_around(heads, of_a_sweep, share)
        for_neighbours = int(sweeps * _SHARE_OF_NEIGHBOURS)
        left = searcher.expand(for_neighbours)
        searcher.restart(weights, sweeps - for_neighbours + left, np.random.default_rng(seed))
    return Found(searcher.front, solved)


def _sweeps_around(heads: int, of_a_sweep: int, share: float) -> int:
    """How many sweeps to spend around the front: by what one looks at, and by how many heads there are."""
    cheap = min(_CHEAP // of_a_sweep, _MOST_CHEAP_SWEEPS)
    return min(max(cheap, int(heads**4 * _SWEEPS_PER_HEADS_4)), int(share * _MOST_FOR_RESTARTS) // of_a_sweep)


@dataclass
class _Best:
    """The lowest objective in a sweep so far, and the choice at the present position that reaches it.

    Without a weight nothing is better than what is there.

    Attributes:
        of_front: nothing on the front has a lower objective, so only what improves the front can.
    """

    weight: float | None
    score: float
    of_front: bool = False
    choice: ExitChoice | None = None

    def offer(self, score: float, choice: ExitChoice | None) -> None:
        if score < self.score - _SAME_SCORE:
            self.score, self.choice = score, choice


class _Searcher:
    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.front = Front(len(problem) * problem.steps)
        self._base = max(problem.full_gain, 1)
        self._all = np.ones(len(problem), np.bool_)
        self._lines = Lines(problem)
        # Positions of which all lines were offered to the front, and the setting without them.
        self._offered: set[tuple[int, Setting]] = set()
        # For every gain, the cost of the last setting whose neighbours were all offered.
        self._closed = np.full_like(self.front.bound, np.inf)
        full = np.array([problem.full_gain]), np.array([problem.full_cost / len(problem)])
        if problem.positions:
            self.front.add(*full, np.zeros(1, np.float32), Line(problem.off, 0, None))

    def solve(self, weights: Sequence[float], sweeps: int) -> int:
        """Sweep from the best setting of each weight until it stays the best; return how many were solved."""
        for solved, weight in enumerate(weights):
            while self._is_open(point := self._best_point(weight)):
                if sweeps <= 0:
                    return solved
                sweeps -= 1
                setting, cost = self.front.setting(point), self.front.bound[point]
                if self.sweep(setting, weight) == setting:  # then every line was one of this setting
                    self._closed[point] = cost
        return len(weights)

    def expand(self, sweeps: int) -> int:
        """Look at all single changes of the settings on the front, spread over it; return the sweeps left."""
        while sweeps > 0:
            points = self.front.points()
            points = points[self._is_open(points)]
            if len(points) == 0:
                break
            points = points[np.unique(np.linspace(0, len(points) - 1, min(sweeps, len(points), 64)).astype(int))]
            costs = self.front.bound[points]
            for setting in [self.front.setting(point) for point in points]:
                self.sweep(setting, None)
            self._closed[points] = costs
            sweeps -= len(points)
        return sweeps

    def _is_open(self, points: Any) -> Any:
        """Whether a point of the front was not closed since it became as cheap; of an array or one."""
        return self.front.bound[points] < self._closed[points]

    def restart(self, weights: Sequence[float], sweeps: int, random: np.random.Generator) -> None:
        """Change a setting of the front at random, and descend, every other time with the weight that fits there."""
        for number in range(sweeps // _SWEEPS_OF_A_RESTART):
            if number % _RESTARTS_OF_A_ROUND == 0:
                points = self.front.points()
                best = np.array([self._best_point(weight) for weight in weights])
            point = int(random.choice(points))
            fitting = np.argmin(np.abs(best - point)) if number % 2 else random.integers(len(weights))
            weight = weights[int(fitting)]
            setting = self._disturbed(self.front.setting(point), random)
            for _ in range(_SWEEPS_OF_A_RESTART):
                before, setting = setting, self.sweep(setting, weight)
                if setting == before:
                    break

    def sweep(self, setting: Setting, weight: float | None) -> Setting:
        """Offer the lines of all positions to the front, and set each position to its best before the next.

        Without a weight the setting stays as it is: its neighbours are looked at, no more.
        """
        best = self._start(setting, weight)
        for index in range(len(setting)):
            best.choice = setting[index]
            self._walk(setting, index, best)
            setting = (*setting[:index], best.choice, *setting[index + 1 :])
        return setting

    def _start(self, setting: Setting, weight: float | None) -> _Best:
        if weight is None:
            return _Best(None, 0.0, of_front=True)
        score, point = self._score_of(setting, weight), self._best_point(weight)
        least = float(self._score(point, self.front.bound[point] * len(self.problem), weight))
        return _Best(weight, score, of_front=score <= least + _SAME_SCORE)

    def _walk(self, setting: Setting, index: int, best: _Best) -> None:
        """Walk along all lines of one position, and note what is better than what is there."""
        rest = index, (*setting[:index], None, *setting[index + 1 :])
        if best.of_front and rest in self._offered:  # then no point of them improves the front
            return
        self._offered.add(rest)
        around = self._lines.around(setting, index)
        off = np.array([around.gain]), np.array([around.cost / len(self.problem)])
        alone = not any(rest[1])  # the full model, which is there
        if not alone and len(self.front.improving(*off)):
            self.front.add(*off, np.zeros(1, np.float32), Line(setting, index, None))
        if best.weight is not None:
            cost = self.problem.full_cost if alone else around.cost
            best.offer(float(self._score(around.gain, cost, best.weight)), None)
        if around.arrived.count == 0:
            return
        for number, head in enumerate(self.problem.positions[index].heads):
            walk = self._lines.walk(around, index, number)
            improving = self._offer(walk, head, Line(setting, index, number))
            if best.weight is not None:
                self._choose(number, head, walk, improving if best.of_front else None, best)

    def _offer(self, walk: Walk, head: Head, line: Line) -> NDArray[np.int64]:
        """Add to the front what improves it; return the indices of that."""
        cost = walk.cost / len(self.problem)
        improving = self.front.improving(walk.gain, cost)
        if len(improving):
            improving, thresholds = _parted(head, walk.samples, improving)
            self.front.add(walk.gain[improving], cost[improving], thresholds, line)
        return improving

    def _choose(self, number: int, head: Head, walk: Walk, among: NDArray[np.int64] | None, best: _Best) -> None:
        """Offer the lowest score of a line, or of some of its points, which can all be parted."""
        assert best.weight is not None
        gain, cost = (walk.gain, walk.cost) if among is None else (walk.gain[among], walk.cost[among])
        if len(gain) == 0:
            return
        scores = self._score(gain, cost, best.weight)
        lowest = int(np.argmin(scores))
        if scores[lowest] >= best.score:
            return
        at = lowest if among is None else int(among[lowest])
        parted, thresholds = _parted(head, walk.samples, np.array([at]))
        if len(parted):
            best.offer(float(scores[lowest]), ExitChoice(number, float(thresholds[0])))
        else:
            self._choose(number, head, walk, _parted(head, walk.samples, np.arange(len(gain)))[0], best)

    def _score(self, gain: Any, cost: Any, weight: float) -> Any:
        """The objective without its constant, of arrays or numbers that are summed over the samples."""
        return cost * ((1 - weight) / len(self.problem)) - gain * (weight / self._base)

    def _score_of(self, setting: Setting, weight: float) -> float:
        if not any(setting):
            return float(self._score(self.problem.full_gain, self.problem.full_cost, weight))
        found = self._lines.after(setting)
        return float(self._score(self._total(found.gain), found.cost.sum(), weight))

    def _total(self, gain: NDArray[np.int8]) -> int:
        return total_gain(gain, self._all, self.problem.steps)

    def _best_point(self, weight: float) -> int:
        """The point of the front with the lowest objective."""
        points = self.front.points()
        scores = self._score(points, self.front.bound[points] * len(self.problem), weight)
        return int(points[np.argmin(scores)])

    def _disturbed(self, setting: Setting, random: np.random.Generator) -> Setting:
        """Spliced with another setting of the front, or a place or two, or all from some place on, set at random."""
        if random.random() < _SPLICED:
            other, cut = self.front.setting(int(random.choice(self.front.points()))), random.integers(len(setting))
            first, second = (setting, other) if random.random() < 0.5 else (other, setting)
            if (spliced := (*first[:cut], *second[cut:])) != setting:
                return spliced
        places = random.permutation(len(setting))[: random.integers(1, _CHANGED_BY_A_RESTART + 1)]
        if random.random() < 0.5:
            places = np.arange(random.integers(0, len(setting)), len(setting))
        changed = list(setting)
        for index in places:
            heads = self.problem.positions[index].heads
            number = int(random.integers(-1, len(heads)))
            changed[index] = None if number < 0 else ExitChoice(number, float(random.choice(heads[number].score)))
        return tuple(changed)


def _coarse_to_fine(weights: Sequence[float]) -> list[float]:
    """The same weights, every prefix of them spread over the whole range: the order of van der Corput's sequence."""
    bits = max(1, (len(weights) - 1).bit_length())
    reverse = [int(f"{index:0{bits}b}"[::-1], 2) for index in range(len(weights))]
    return [weights[index] for index in np.argsort(reverse)]


def _parted(
    head: Head, samples: NDArray[np.int64], indices: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return those of the indices after which a threshold can part the samples, and that threshold.

    It is the float32 midpoint between the score there and the next one, which has to be lower. The last sample is
    followed by 0, which no threshold is below.
    """
    last = len(samples) - 1
    here = head.score[samples[indices]]
    there = head.score[samples[np.minimum(indices + 1, last)]]
    there[indices == last] = 0
    apart = here > there
    here, there = here[apart], there[apart]
    middle = ((here.astype(np.float64) + there) / 2).astype(np.float32)
    return indices[apart], np.where(middle < here, middle, there)
