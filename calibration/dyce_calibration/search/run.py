"""A whole search: by any method, with the accuracy that is counted on, and with what other samples say."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dyce_calibration.promises.certify import check_promise
from dyce_calibration.search import exact, published
from dyce_calibration.search.front import Front
from dyce_calibration.search.line import Replay
from dyce_calibration.search.problem import Problem, Setting
from dyce_runtime.errors import UsageError

METHODS = ("exact", "onepass", "circular", "samethres")
_QUANTILE = 0.1

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
        found_along, solved = _along_chains(chosen_on, how)
        return _rate({chosen_on.off, *found_along}, chosen_on, reported_on, accuracy, solved)
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


def _along_chains(problem: Problem, how: Search) -> tuple[list[Setting], int]:
    """What is found along every chain, and how many weights were solved with all of them."""
    settings: list[Setting] = []
    solved = how.weights
    for chain in (chain for chain in problem.chains() if chain.problem.positions):
        found = exact.search(chain.problem, _weights(how), how.seed)
        settings += map(chain.whole, found.front.settings())
        solved = min(solved, found.solved)
    return settings, solved


def _whole_front(front: Front, chosen_on: Problem, reported_on: Problem | None, base: float, solved: int) -> Outcome:
    """The search knows cost and right answers; on other samples they are replayed line by line."""
    points = front.points()
    accuracy, settings = points / len(chosen_on), tuple(front.settings())
    outcome = Outcome(settings, front.bound[points], accuracy, accuracy, base, solved)
    if reported_on is None:
        return outcome
    right, cost = np.empty(len(points), np.int64), np.empty(len(points))
    replay = Replay(reported_on)
    for line, group, thresholds in front.lines():
        at = np.searchsorted(points, group)
        right[at], cost[at] = replay(line, thresholds)
    full = [index for index, setting in enumerate(settings) if not any(setting)]
    cost[full] = 1.0
    return _with_test(outcome, right / len(reported_on), cost)


def _rate(
    settings: Iterable[Setting],
    chosen_on: Problem,
    reported_on: Problem | None,
    accuracy: Callable[[Counts, Counts], float],
    solved: int,
) -> Outcome:
    """Evaluate settings one by one and keep those that no other beats."""
    rated = []
    for setting in settings:
        left, right = chosen_on.counts(setting)
        cost = float(left @ chosen_on.paid(setting)) / len(chosen_on)
        rated.append((cost, -accuracy(left, right), int(right.sum()) / len(chosen_on), setting))
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


def _counted(how: Search) -> Callable[[Counts, Counts], float]:
    """From the samples that leave at each exit, and those of them that are right, to the accuracy to count on."""
    if not how.conservative:
        return lambda left, right: int(right.sum()) / int(left.sum())
    try:
        from scipy.stats import beta
    except ImportError:
        raise UsageError(
            "conservative accuracies need SciPy, which is not installed",
            hint="pip install scipy, or search without --conservative; certificates need nothing.",
        ) from None

    def quantile(left: Counts, right: Counts) -> float:
        some = left > 0
        lower = beta.ppf(_QUANTILE, 1 + right[some], 1 + left[some] - right[some])
        return float(lower @ left[some] / left.sum())

    return quantile
