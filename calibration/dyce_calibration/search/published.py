"""The searches that were published with DyCE (arXiv 2403.01695), for comparison.

They search with one weight at a time, and find every threshold with a bounded scalar minimiser over [0, 1]. Both use
the objective J = weight * (1 - accuracy / base accuracy) + (1 - weight) * cost throughout, whereas the released code
of the circular search compares normalised costs with costs that are not normalised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np

from dyce_calibration.search.problem import ExitChoice, Problem, Setting
from dyce_runtime.errors import UsageError

_SAME_THRESHOLDS = 1000

Score = Callable[[Setting], float]
# (setting, index of a position) -> the lowest objective that a change at that position can reach, and the new setting
BestAt = Callable[[Setting, int], tuple[float, Setting]]


def onepass(problem: Problem, weights: Iterable[float]) -> list[Setting]:
    """Set each position, first to last, to its best head and threshold with later positions off.

    Args:
        weights: weights of the accuracy, each in [0, 1]; one setting is returned for each.

    Raises:
        UsageError: SciPy is not installed.
    """

    def descend(score: Score, best_at: BestAt) -> Setting:
        setting = problem.off
        for index in range(len(setting)):
            setting = best_at(setting, index)[1]
        return setting

    return _descend_with_each(problem, weights, descend)


def circular(problem: Problem, weights: Iterable[float]) -> list[Setting]:
    """Apply the change of a single position that lowers the objective most, until no change lowers it.

    Args:
        weights: weights of the accuracy, each in [0, 1]; one setting is returned for each.

    Raises:
        UsageError: SciPy is not installed.
    """

    def descend(score: Score, best_at: BestAt) -> Setting:
        setting = problem.off
        while True:
            changes = [best_at(setting, index) for index in range(len(setting))]
            value, changed = min(changes, key=lambda change: change[0])
            if value >= score(setting):
                return setting
            setting = changed

    return _descend_with_each(problem, weights, descend)


def _descend_with_each(
    problem: Problem, weights: Iterable[float], descend: Callable[[Score, BestAt], Setting]
) -> list[Setting]:
    minimise = _minimiser()
    found = []
    for weight in weights:
        score = _objective(problem, weight)
        found.append(descend(score, partial(_best_at, problem, score=score, minimise=minimise)))
    return found


def samethres(problem: Problem) -> list[Setting]:
    """Return settings with the same threshold at all exits and the first head of each: a baseline without a search."""
    scores = np.unique(np.concatenate([position.heads[0].score for position in problem.positions]))
    chosen = np.unique(np.linspace(0, len(scores) - 1, _SAME_THRESHOLDS).astype(int))
    return [tuple(ExitChoice(0, float(scores[index])) for _ in problem.positions) for index in chosen]


def _best_at(problem: Problem, setting: Setting, index: int, score: Score, minimise: Any) -> tuple[float, Setting]:
    """Return the lowest objective that a change at one position can reach, and the new setting."""
    options = list(_options(problem, setting, index, score, minimise))
    return min(options, key=lambda option: option[0])


def _options(
    problem: Problem, setting: Setting, index: int, score: Score, minimise: Any
) -> Iterator[tuple[float, Setting]]:
    def changed(choice: ExitChoice | None) -> Setting:
        return (*setting[:index], choice, *setting[index + 1 :])

    yield score(changed(None)), changed(None)
    for number in range(len(problem.positions[index].heads)):
        best = minimise(partial(_at_threshold, score, changed, number))
        yield float(best.fun), changed(ExitChoice(number, float(np.float32(best.x))))


def _at_threshold(score: Score, changed: Callable[[ExitChoice], Setting], head: int, threshold: float) -> float:
    return score(changed(ExitChoice(head, float(np.float32(threshold)))))


def _objective(problem: Problem, weight: float) -> Score:
    base = max(problem.accuracy, 1 / len(problem))

    def score(setting: Setting) -> float:
        figures = problem.evaluate(setting)
        return weight * (1 - figures.accuracy / base) + (1 - weight) * figures.cost

    return score


def _minimiser() -> Callable[[Callable[[float], float]], Any]:
    try:
        from scipy.optimize import minimize_scalar
    except ImportError:
        raise UsageError(
            "the published searches need SciPy, which is not installed",
            hint="pip install scipy, or use --method exact.",
        ) from None
    return lambda function: minimize_scalar(function, bounds=(0, 1), method="bounded")
