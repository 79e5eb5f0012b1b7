import sys

import numpy as np
import pytest

from benchmarks.searching.small_problems import make_small, objective
from dyce_calibration.search import exact, published
from dyce_runtime.errors import UsageError

pytest.importorskip("scipy", reason="SciPy is not installed")


@pytest.mark.parametrize("method", [published.onepass, published.circular])
@pytest.mark.parametrize("seed", range(5))
def test_exact_is_never_worse_than_what_was_published(method, seed):
    problem = make_small(seed, samples=300)
    weights = np.linspace(0.5, 1, 6).tolist()
    front = exact.search(problem, weights).front
    for setting in method(problem, weights):
        figures = problem.evaluate(setting)
        assert front.bound[round(figures.accuracy * len(problem))] <= figures.cost + 1e-9


@pytest.mark.parametrize("method", [published.onepass, published.circular])
def test_searching_lowers_the_objective(method):
    problem = make_small(1, samples=300)
    (setting,) = method(problem, [0.7])
    figures = problem.evaluate(setting)
    found = objective(problem, 0.7, figures.accuracy * len(problem), figures.cost)
    assert found < objective(problem, 0.7, problem.full_gain, 1) - 0.01


def test_circular_ends_where_no_position_can_be_improved_by_the_same_means():
    problem = make_small(2, samples=300)
    (setting,) = published.circular(problem, [0.7])
    score = published._objective(problem, 0.7)
    minimise = published._minimiser()
    for index in range(len(setting)):
        assert published._best_at(problem, setting, index, score, minimise)[0] >= score(setting)


def test_a_shared_threshold_is_shared():
    for setting in published.samethres(make_small(0)):
        assert len({on.threshold for on in setting}) == 1
        assert {on.head for on in setting} == {0}


def test_without_scipy_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(UsageError, match="need SciPy") as caught:
        published.onepass(make_small(0), [0.7])
    assert "--method exact" in caught.value.hint
