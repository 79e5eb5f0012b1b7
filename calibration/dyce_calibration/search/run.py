"""A whole search: by any method, with the accuracy that is counted on, and with what other samples say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dyce_calibration.promises.certify import check_promise
from dyce_calibration.search import exact, published
from dyce_calibration.search.front import Front
from dyce_calibration.search.line import Replay
from dyce_calibration.search.problem import Problem, Setting
from dyce_calibration.search.subproblems import SubProblem, subproblems
from dyce_runtime.errors import UsageError

METHODS = ("exact", "onepass", "circular", "samethres")
_QUANTILE = 0.1
# Of many parts of a problem, those are searched that contribute most to a first front.
_MOST_PARTS = 16
_FIRST_WEIGHTS = 8

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Search:
    """How to search and what to promise.

    Attributes:
        method: one of :data:`METHODS`.
        weights: how many weights of accuracy against cost are solved.
        epsilon, delta: a certificate promises a loss of at most epsilon with probability at least 1 - delta.
        conservative: count on the 10 % quantile of each exit's accuracy instead of the accuracy; needs SciPy.
        max_loss: the cheapest configuration that loses at most this is named ``chosen``.
        max_cost: the most accurate configuration that costs at most this is named ``chosen``.
    """

    method: str = "exact"
    weights: int = 500
    epsilon: float = 0.01
    delta: float = 0.05
    seed: int = 0
    conservative: bool = False
    max_loss: float | None = None
    max_cost: float | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_promise(self.epsilon, self.delta)
        if self.method not in METHODS:
            raise UsageError(f"there is no search method {self.method!r}; expected one of {', '.join(METHODS)}")
        if self.weights < 1:
            raise UsageError(f"{self.weights} weights were asked for; expected at least 1")
        if self.max_loss is not None and not 0 <= self.max_loss < 1:
            raise UsageError(f"the largest loss is {self.max_loss:g}; expected a fraction, such as 0.003")
        if self.max_cost is not None and not 0 < self.max_cost <= 1:
            raise UsageError(f"the largest cost is {self.max_cost:g}; expected a share of the full model, such as 0.6")


@dataclass(frozen=True)
class Outcome:
    """The front of a search: settings that no other found one beats in both cost and the accuracy counted on.

    Attributes:
        settings: n of them, cheapest first.
        cost, accuracy: (n,) on the samples that were searched.
        counted: (n,) the accuracy to count on: the same or, on request, less.
        base: what is counted on for the full model.
        solved: for how many weights.
        test_cost, test_accuracy: (n,) on other samples; None without any.
    """

    settings: tuple[Setting, ...]
    cost: Floats
    accuracy: Floats
    counted: Floats
    base: float
    solved: int
    test_cost: Floats | None = None
    test_accuracy: Floats | None = None

    def cheapest(self, loss: float) -> Setting | None:
        """The cheapest setting that loses at most ``loss``; None if there is none."""
        # A loss of exactly the allowance is allowed in floating point, too.
        fitting = np.flatnonzero(self.base - self.counted <= loss + 1e-12)
        return self.settings[fitting[0]] if len(fitting) else None

    def most_accurate(self, cost: float) -> Setting | None:
        """The most accurate setting that costs at most ``cost``; None if there is none."""
        fitting = np.flatnonzero(self.cost <= cost)
        return self.settings[fitting[-1]] if len(fitting) else None


def run(chosen_on: Problem, reported_on: Problem | None, how: Search) -> Outcome:
    """Search in one problem, and say what the settings found do on other samples."""
    accuracy = _counted(how)
    base = accuracy(*chosen_on.counts(chosen_on.off))
    if how.method == "exact" and not chosen_on.simple:
        settings_of_parts, solved = _search_parts(chosen_on, how)
        return _rate({chosen_on.off, *settings_of_parts}, chosen_on, reported_on, accuracy, solved)
    if how.method == "exact" and chosen_on.positions:
        found = exact.search(chosen_on, _weights(how), how.seed)
        if not how.conservative:
            return _whole_front(found.front, chosen_on, reported_on, base, found.solved)
        return _rate(found.front.settings(), chosen_on, reported_on, accuracy, found.solved)
    settings: Iterable[Setting] = []
    if how.method == "samethres":
        settings = published.samethres(chosen_on)
    elif chosen_on.positions:
        method = published.onepass if how.method == "onepass" else published.circular
        settings = method(chosen_on, np.linspace(0.5, 1.05, how.weights).tolist())
    solved = 0 if how.method == "samethres" else how.weights
    return _rate({chosen_on.off, *settings}, chosen_on, reported_on, accuracy, solved)


def _weights(how: Search) -> list[float]:
    # Equal steps of the odds: most of what matters lies where accuracy weighs much more than cost.
    odds = np.geomspace(0.5, 2000, how.weights)
    weights: list[float] = (odds / (1 + odds)).tolist()
    return weights


def _search_parts(problem: Problem, how: Search) -> tuple[list[Setting], int]:
    """What is found in the parts of a problem, which share the work of one search, and for how many weights."""
    parts, settings = subproblems(problem), list[Setting]()
    if len(parts) > _MOST_PARTS:
        parts, settings = _promising(problem, parts, how)
    solved = how.weights
    for part in parts:
        found = exact.search(part.problem, _weights(how), how.seed, share=1 / len(parts))
        settings += map(part.whole, found.front.settings())
        solved = min(solved, found.solved)
    return settings, solved


def _promising(problem: Problem, parts: list[SubProblem], how: Search) -> tuple[list[SubProblem], list[Setting]]:
    """The parts that a short search of each finds most of a common front in, and the settings on that front."""
    weights = _weights(how)[:: max(1, how.weights // _FIRST_WEIGHTS)]
    found: dict[Setting, int] = {}
    for number, part in enumerate(parts):
        front = exact.search(part.problem, weights, how.seed, around=False, share=1 / len(parts)).front
        for setting in thinned(front.settings(), _FIRST_WEIGHTS * 8):
            found.setdefault(part.whole(setting), number)
    accuracy = _counted(how)
    best = _rate(found, problem, None, accuracy, 0).settings
    counts = np.bincount([found[setting] for setting in best], minlength=len(parts))
    chosen = np.argsort(-counts, kind="stable")[:_MOST_PARTS]
    return [parts[number] for number in sorted(chosen) if counts[number]], list(best)


def thinned(settings: Sequence[Setting], most: int) -> list[Setting]:
    """At most ``most`` settings, evenly spread, with both ends."""
    kept = np.unique(np.linspace(0, len(settings) - 1, min(len(settings), most)).round().astype(int))
    return [settings[index] for index in kept]


def _whole_front(front: Front, chosen_on: Problem, reported_on: Problem | None, base: float, solved: int) -> Outcome:
    """The search knows cost and gain; on other samples they are replayed line by line."""
    points = front.points()
    accuracy, settings = points / (len(chosen_on) * chosen_on.steps), tuple(front.settings())
    outcome = Outcome(settings, front.bound[points], accuracy, accuracy, base, solved)
    if reported_on is None:
        return outcome
    gain, cost = np.empty(len(points), np.int64), np.empty(len(points))
    replay = Replay(reported_on)
    for line, group, thresholds in front.lines():
        at = np.searchsorted(points, group)
        gain[at], cost[at] = replay(line, thresholds)
    full = [index for index, setting in enumerate(settings) if not any(setting)]
    cost[full] = reported_on.full_cost / len(reported_on)
    return _with_test(outcome, gain / (len(reported_on) * reported_on.steps), cost)


def _rate(
    settings: Iterable[Setting],
    chosen_on: Problem,
    reported_on: Problem | None,
    accuracy: Callable[[Counts, Floats], float],
    solved: int,
) -> Outcome:
    """Evaluate settings one by one and keep those that no other beats."""
    rated = []
    for setting in settings:
        left, gain = chosen_on.counts(setting)
        rated.append((chosen_on.cost(setting), -accuracy(left, gain), float(gain.sum()) / len(chosen_on), setting))
    kept: list[tuple[float, float, float, Setting]] = []
    for item in sorted(rated, key=lambda item: item[:2]):
        if not kept or item[1] < kept[-1][1]:
            kept.append(item)
    costs, negatives, accuracies, front = zip(*kept, strict=True)
    base = accuracy(*chosen_on.counts(chosen_on.off))
    outcome = Outcome(front, np.array(costs), np.array(accuracies), -np.array(negatives), base, solved)
    if reported_on is None:
        return outcome
    figures = [reported_on.evaluate(setting) for setting in front]
    return _with_test(outcome, np.array([f.accuracy for f in figures]), np.array([f.cost for f in figures]))


def _with_test(outcome: Outcome, accuracy: Floats, cost: Floats) -> Outcome:
    return Outcome(
        outcome.settings,
        outcome.cost,
        outcome.accuracy,
        outcome.counted,
        outcome.base,
        outcome.solved,
        test_cost=cost,
        test_accuracy=accuracy,
    )


def _counted(how: Search) -> Callable[[Counts, Floats], float]:
    """From the samples that leave at each exit, and the sum of 1 - loss over them, to the accuracy to count on."""
    if not how.conservative:
        return lambda left, gain: float(gain.sum()) / int(left.sum())
    try:
        from scipy.stats import beta
    except ImportError:
        raise UsageError(
            "conservative accuracies need SciPy, which is not installed",
            hint="pip install scipy, or search without --conservative; certificates need nothing.",
        ) from None

    def quantile(left: Counts, gain: Floats) -> float:
        some = left > 0
        lower = beta.ppf(_QUANTILE, 1 + gain[some], 1 + left[some] - gain[some])
        return float(lower @ left[some] / left.sum())

    return quantile
