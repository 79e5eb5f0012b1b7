"""Run a search with any method, and evaluate the settings found on other samples."""

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
# If a problem has more parts than this, only those that contribute most to a first, short search are searched.
_MOST_PARTS = 16
_FIRST_WEIGHTS = 8

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Search:
    """How to search and what to certify.

    Attributes:
        method: one of :data:`METHODS`.
        weights: number of weights of accuracy against cost.
        epsilon, delta: a certificate promises a loss of at most epsilon with probability at least 1 - delta.
        seed: seed of the random restarts.
        conservative: use the 10 % quantile of each exit's accuracy instead of the accuracy; needs SciPy.
        max_loss: the cheapest configuration that loses at most this accuracy, a fraction, is named ``chosen``.
        max_cost: the most accurate configuration that costs at most this, relative to the full model, is named
            ``chosen``. Not used with ``max_loss``.

    Raises:
        UsageError: a value is not allowed.
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
        """Check the values."""
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
    """The front of a search: settings that no other setting found dominates in cost and counted accuracy.

    Attributes:
        settings: n settings, cheapest first.
        cost: (n,) relative to the full model, on the samples of the search.
        accuracy: (n,) on the samples of the search.
        counted: (n,) the accuracy by which settings are compared: ``accuracy``, or a quantile in a conservative search.
        base: the counted accuracy of the full model.
        solved: the number of weights that were solved; in an exact search those for which no single change improves the
            best setting.
        test_cost, test_accuracy: (n,) on other samples; None if there are none.
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
        """Return the cheapest setting that loses at most ``loss``; None if there is none."""
        # The tolerance allows a loss of exactly ``loss`` in spite of rounding.
        fitting = np.flatnonzero(self.base - self.counted <= loss + 1e-12)
        return self.settings[fitting[0]] if len(fitting) else None

    def most_accurate(self, cost: float) -> Setting | None:
        """Return the most accurate setting that costs at most ``cost``; None if there is none."""
        fitting = np.flatnonzero(self.cost <= cost)
        return self.settings[fitting[-1]] if len(fitting) else None


def run(chosen_on: Problem, reported_on: Problem | None, how: Search) -> Outcome:
    """Search a problem, and evaluate the settings found on other samples.

    Args:
        chosen_on: the problem that is searched.
        reported_on: the same heads on other samples; None if there are none.

    Raises:
        UsageError: the method, or a conservative search, needs SciPy, which is not installed.
    """
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
    # Geometric steps of the odds, since the relevant settings have weights of accuracy much larger than those of cost.
    odds = np.geomspace(0.5, 2000, how.weights)
    weights: list[float] = (odds / (1 + odds)).tolist()
    return weights


def _search_parts(problem: Problem, how: Search) -> tuple[list[Setting], int]:
    """Search the parts of a problem, which share the budget of one search.

    Returns:
        the settings found, and the lowest number of weights solved in any part.
    """
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
    """Search every part briefly, and return the parts that contribute most to the common front, and its settings."""
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
    """Return at most ``most`` settings, evenly spread and including both ends."""
    kept = np.unique(np.linspace(0, len(settings) - 1, min(len(settings), most)).round().astype(int))
    return [settings[index] for index in kept]


def _whole_front(front: Front, chosen_on: Problem, reported_on: Problem | None, base: float, solved: int) -> Outcome:
    """Convert the front of an exact search, and evaluate it on other samples line by line, which is fast."""
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
    """Evaluate settings one by one and keep those that no other dominates."""
    rated = []
    for setting in settings:
        exited, gain = chosen_on.counts(setting)
        rated.append((chosen_on.cost(setting), -accuracy(exited, gain), float(gain.sum()) / len(chosen_on), setting))
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
    """Return the function that computes the counted accuracy.

    Its arguments are the number of samples that take each exit, and the sums of their 1 - loss.
    """
    if not how.conservative:
        return lambda exited, gain: float(gain.sum()) / int(exited.sum())
    try:
        from scipy.stats import beta
    except ImportError:
        raise UsageError(
            "conservative accuracies need SciPy, which is not installed",
            hint="pip install scipy, or search without --conservative; certificates need nothing.",
        ) from None

    def quantile(exited: Counts, gain: Floats) -> float:
        some = exited > 0
        lower = beta.ppf(_QUANTILE, 1 + gain[some], 1 + exited[some] - gain[some])
        return float(lower @ exited[some] / exited.sum())

    return quantile
