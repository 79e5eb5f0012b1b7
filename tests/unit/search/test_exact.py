from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.searching.small_problems import every_setting, make_small, objective
from dyce_calibration.search import exact
from dyce_calibration.search.line import Lines
from dyce_calibration.search.problem import On, Setting

WEIGHTS = np.linspace(0.5, 1, 26).tolist()


@pytest.mark.parametrize("seed", range(12))
def test_small_problems_are_solved_to_the_optimum(seed):
    problem = make_small(seed)
    rights, costs = every_setting(problem)
    front = exact.search(problem, WEIGHTS).front
    points = front.points()
    for weight in (0.5, 0.8, 0.95):
        optimum = objective(problem, weight, rights, costs).min()
        found = objective(problem, weight, points, front.bound[points]).min()
        assert found == pytest.approx(optimum, abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.data())
def test_brute_force_leaves_no_setting_out(seed, data):
    problem = make_small(seed, positions=2, samples=10)

    def choose(index: int) -> On | None:
        heads = problem.positions[index].heads
        number = data.draw(st.sampled_from([None, *range(len(heads))]))
        if number is None:
            return None
        # Above the highest confidence a head would cost and do nothing.
        below = [0.0, *np.unique(heads[number].confidence)[:-1].tolist()]
        return On(number, data.draw(st.sampled_from(below)))

    setting: Setting = (choose(0), choose(1))
    figures = problem.evaluate(setting)
    rights, costs = every_setting(problem)
    same = (rights == round(figures.accuracy * len(problem))) & (abs(costs - figures.cost) < 1e-12)
    assert same.any()


problems = st.builds(
    make_small,
    st.integers(0, 10**6),
    positions=st.integers(1, 4),
    types=st.integers(1, 3),
    samples=st.integers(1, 60),
    grid=st.sampled_from([3, 20, 10**6]),
)


@settings(max_examples=25, deadline=None)
@given(problems)
def test_the_front_is_what_its_settings_do(problem):
    """Every point is a setting whose right answers and cost are exactly those of running it on the records."""
    front = exact.search(problem, WEIGHTS[::5]).front
    points = front.points().tolist()
    for point, setting in zip(points, front.settings(), strict=True):
        figures = problem.evaluate(setting)
        assert round(figures.accuracy * len(problem)) == point
        assert figures.cost == pytest.approx(front.bound[point], abs=1e-9)
    for before, after in pairwise(points):
        assert front.bound[before] < front.bound[after]
    assert any(setting == problem.off for setting in front.settings()) or min(front.bound[problem.right :]) <= 1


@settings(max_examples=25, deadline=None)
@given(problems, st.floats(0.5, 1))
def test_no_single_change_of_a_solved_weights_setting_helps(problem, weight):
    found = exact.search(problem, [weight])
    assert found.solved == 1
    points = found.front.points()
    scores = objective(problem, weight, points, found.front.bound[points])
    best = found.front.setting(int(points[np.argmin(scores)]))
    for index, position in enumerate(problem.positions):
        choices: list[On | None] = [None]
        for number, head in enumerate(position.heads):
            choices += [On(number, float(t)) for t in [0, *np.unique(head.confidence)]]
        for choice in choices:
            figures = problem.evaluate((*best[:index], choice, *best[index + 1 :]))
            right = figures.accuracy * len(problem)
            assert objective(problem, weight, right, figures.cost) >= min(scores) - 1e-9


@settings(max_examples=25, deadline=None)
@given(problems, st.data())
def test_lines_are_walked_the_same_whatever_was_walked_before(problem, data):
    """They share what lies before and behind a position; every point has to be what running its setting gives."""
    lines, setting = Lines(problem), problem.off
    for _ in range(6):
        index = data.draw(st.integers(0, len(setting) - 1))
        around = lines.around(setting, index)
        for number, head in enumerate(problem.positions[index].heads):
            walk = lines.walk(around, index, number)
            on = On(number, float(data.draw(st.sampled_from(head.confidence.tolist()))))
            setting = (*setting[:index], on, *setting[index + 1 :])
            left, right = problem.counts(setting)
            reached = (around.right, around.cost + around.arrived.count * head.cost)
            if left[index]:
                reached = walk.right[left[index] - 1], walk.cost[left[index] - 1]
            assert reached == (right.sum(), pytest.approx(left @ problem.paid(setting)))
        if data.draw(st.booleans()):
            setting = (*setting[:index], None, *setting[index + 1 :])


def test_work_is_bounded(monkeypatch):
    problem = make_small(0)
    monkeypatch.setattr(exact, "_MOST_FOR_WEIGHTS", 2 * len(problem) * 6)
    monkeypatch.setattr(exact, "_MOST_FOR_RESTARTS", 0)
    found = exact.search(problem, WEIGHTS)
    assert found.solved < len(WEIGHTS)
    assert len(found.front.points()) > 1


def test_a_search_finds_the_same_again():
    problem = make_small(3)
    assert exact.search(problem, WEIGHTS).front.settings() == exact.search(problem, WEIGHTS).front.settings()


def test_the_first_weights_cover_the_whole_range():
    order = exact._coarse_to_fine(list(range(100)))
    assert sorted(order) == list(range(100))
    for count in (4, 16, 60):
        assert max(np.diff(sorted(order[:count]))) <= 2 * 128 / count
