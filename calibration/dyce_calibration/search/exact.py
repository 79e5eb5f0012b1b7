"""Exact search: coordinate descent that evaluates all thresholds of one position at once, until no single change helps.

With all other positions fixed, a threshold at one position lets the k arriving samples with the highest scores exit.
Gain (the sum of 1 - loss over the samples) and cost as functions of k are prefix sums over the arriving samples in the
order of their scores, so one pass gives every setting along that line exactly. All of these settings are offered to
one front, which therefore has far more points than one optimum per weight.

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

# The budget of a search is counted in scores: one sweep evaluates samples x heads of them. This is the budget for the
# weights.
_MOST_FOR_WEIGHTS = 1_000_000_000
# After the weights, the search restarts from points of the front: often if a sweep is cheap, and if there are many
# heads, since the number of local optima grows with them.
_CHEAP = 8_000_000
_MOST_CHEAP_SWEEPS = 1600
_SWEEPS_PER_HEADS_4 = 1 / 2000
_MOST_FOR_RESTARTS = 1_000_000_000
_SHARE_OF_NEIGHBOURS = 0.2
_SWEEPS_OF_A_RESTART = 3
_CHANGED_BY_A_RESTART = 2
_SPLICED = 0.6
_RESTARTS_OF_A_ROUND = 32
# A smaller difference is not an improvement, since sums in another order differ in their last bits. Larger than the
# tolerance of the front.
_SAME_SCORE = 1e-9


@dataclass(frozen=True)
class Found:
    """The result of a search.

    Attributes:
        solved: the number of weights for which no single change improves the best setting of the front.
    """

    front: Front
    solved: int


def search(
    problem: Problem, weights: Sequence[float], seed: int = 0, *, around: bool = True, share: float = 1.0
) -> Found:
    """Search with every weight, then try single changes of settings on the front and restart from there.

    Args:
        weights: weights of the accuracy, each in [0, 1].
        seed: seed of the restarts.
        around: whether to do the second part.
        share: fraction of the work budget that this search may use.
    """
    heads = max(1, sum(len(position.heads) for position in problem.positions))
    of_a_sweep = len(problem) * heads
    searcher = _Searcher(problem)
    solved = searcher.solve(_coarse_to_fine(weights), max(1, int(share * _MOST_FOR_WEIGHTS) // of_a_sweep))
    if around:
        sweeps = _sweeps_around(heads, of_a_sweep, share)
        for_neighbours = int(sweeps * _SHARE_OF_NEIGHBOURS)
        unused = searcher.expand(for_neighbours)
        searcher.restart(weights, sweeps - for_neighbours + unused, np.random.default_rng(seed))
    return Found(searcher.front, solved)


def _sweeps_around(heads: int, of_a_sweep: int, share: float) -> int:
    """Return the number of sweeps for the search around the front.

    Args:
        heads: number of heads.
        of_a_sweep: number of scores that a sweep evaluates.
        share: see :func:`search`.
    """
    cheap = min(_CHEAP // of_a_sweep, _MOST_CHEAP_SWEEPS)
    return min(max(cheap, int(heads**4 * _SWEEPS_PER_HEADS_4)), int(share * _MOST_FOR_RESTARTS) // of_a_sweep)


@dataclass
class _Best:
    """The lowest objective of a sweep so far, and the choice at the current position that reaches it.

    Attributes:
        weight: weight of the accuracy; None if the sweep only offers settings to the front and changes nothing.
        score: the lowest objective.
        of_front: whether no point of the front has a lower objective. Then only settings that improve the front can
            improve on it.
    """

    weight: float | None
    score: float
    of_front: bool = False
    choice: ExitChoice | None = None

    def offer(self, score: float, choice: ExitChoice | None) -> None:
        if score < self.score - _SAME_SCORE:
            self.score, self.choice = score, choice


class _Searcher:
    """The state of one search: the front, and which parts of the neighbourhood of its points were searched."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.front = Front(len(problem) * problem.steps)
        self._base = max(problem.full_gain, 1)
        self._all = np.ones(len(problem), np.bool_)
        self._lines = Lines(problem)
        # (position, setting with that position off) for which all lines of the position were offered to the front.
        self._offered: set[tuple[int, Setting]] = set()
        # For every gain, the cost of the last setting all of whose neighbours were offered.
        self._closed = np.full_like(self.front.bound, np.inf)
        full = np.array([problem.full_gain]), np.array([problem.full_cost / len(problem)])
        if problem.positions:
            self.front.add(*full, np.zeros(1, np.float32), Line(problem.off, 0, None))

    def solve(self, weights: Sequence[float], sweeps: int) -> int:
        """Sweep from the best setting of each weight until it does not improve; return the number of weights solved."""
        for solved, weight in enumerate(weights):
            while self._is_open(point := self._best_point(weight)):
                if sweeps <= 0:
                    return solved
                sweeps -= 1
                setting, cost = self.front.setting(point), self.front.bound[point]
                if self.sweep(setting, weight) == setting:  # then all neighbours of this setting were offered
                    self._closed[point] = cost
        return len(weights)

    def expand(self, sweeps: int) -> int:
        """Offer all single changes of settings that are spread over the front; return the number of unused sweeps."""
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
        """Return whether neighbours of a point of the front, or of each of an array, were not all offered yet."""
        return self.front.bound[points] < self._closed[points]

    def restart(self, weights: Sequence[float], sweeps: int, random: np.random.Generator) -> None:
        """Change a random setting of the front and descend from there, again and again.

        Every other time the weight is the one whose best point is nearest; otherwise it is random.
        """
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
        """Offer the lines of all positions to the front, set each position in turn to its best, and return the setting.

        If ``weight`` is None, the setting does not change; its neighbours are only offered to the front.
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
        """Offer all lines of one position to the front, and to ``best`` what lowers its objective."""
        rest = index, (*setting[:index], None, *setting[index + 1 :])
        if best.of_front and rest in self._offered:  # none of their points can improve the front
            return
        self._offered.add(rest)
        around = self._lines.around(setting, index)
        off = np.array([around.gain]), np.array([around.cost / len(self.problem)])
        alone = not any(rest[1])  # the full model, which is on the front from the start
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
        """Add the points of a line that improve the front, and return their indices."""
        cost = walk.cost / len(self.problem)
        improving = self.front.improving(walk.gain, cost)
        if len(improving):
            improving, thresholds = _parted(head, walk.samples, improving)
            self.front.add(walk.gain[improving], cost[improving], thresholds, line)
        return improving

    def _choose(self, number: int, head: Head, walk: Walk, among: NDArray[np.int64] | None, best: _Best) -> None:
        """Offer to ``best`` the point of a line with the lowest objective.

        Args:
            among: indices of the only points to consider, each of which a threshold can realise; None for all points.
        """
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
        """Return the objective without its constant term, for gain and cost summed over the samples."""
        return cost * ((1 - weight) / len(self.problem)) - gain * (weight / self._base)

    def _score_of(self, setting: Setting, weight: float) -> float:
        if not any(setting):
            return float(self._score(self.problem.full_gain, self.problem.full_cost, weight))
        found = self._lines.after(setting)
        return float(self._score(self._total(found.gain), found.cost.sum(), weight))

    def _total(self, gain: NDArray[np.int8]) -> int:
        return total_gain(gain, self._all, self.problem.steps)

    def _best_point(self, weight: float) -> int:
        """Return the point of the front with the lowest objective."""
        points = self.front.points()
        scores = self._score(points, self.front.bound[points] * len(self.problem), weight)
        return int(points[np.argmin(scores)])

    def _disturbed(self, setting: Setting, random: np.random.Generator) -> Setting:
        """Return a random variation of a setting.

        It is spliced with another setting of the front, or one or two of its positions, or all from a random position
        on, are set at random.
        """
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
    """Return the weights in the order of the van der Corput sequence, so that every prefix covers the whole range."""
    bits = max(1, (len(weights) - 1).bit_length())
    reverse = [int(f"{index:0{bits}b}"[::-1], 2) for index in range(len(weights))]
    return [weights[index] for index in np.argsort(reverse)]


def _parted(
    head: Head, samples: NDArray[np.int64], indices: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return those of the indices after which a threshold can separate the samples, and the thresholds.

    A threshold is the float32 midpoint between the score at the index and the next score, which has to be lower. The
    score after the last one counts as 0, so that no threshold is negative.

    Args:
        samples: (n,) samples that arrive at the head, the highest score first.
        indices: indices into ``samples``.
    """
    last = len(samples) - 1
    here = head.score[samples[indices]]
    there = head.score[samples[np.minimum(indices + 1, last)]]
    there[indices == last] = 0
    apart = here > there
    here, there = here[apart], there[apart]
    middle = ((here.astype(np.float64) + there) / 2).astype(np.float32)
    return indices[apart], np.where(middle < here, middle, there)
