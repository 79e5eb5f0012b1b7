from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.searching.small_problems import every_setting, make_small, objective
from dyce_calibration.search import exact
from dyce_calibration.search.line import Lines
from dyce_calibration.search.problem import ExitChoice, Problem, Setting

WEIGHTS = np.linspace(0.5, 1, 26).tolist()


@pytest.mark.parametrize("gates", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_small_problems_are_solved_to_the_optimum(seed, gates):
    problem = make_small(seed, gates=gates)
    gains, costs = every_setting(problem)
    front = exact.search(problem, WEIGHTS).front
    points = front.points()
    for weight in (0.5, 0.8, 0.95):
        optimum = objective(problem, weight, gains, costs).min()
        found = objective(problem, weight, points, front.bound[points]).min()
        assert found == pytest.approx(optimum, abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.data())
def test_brute_force_leaves_no_setting_out(seed, gates, data):
    problem = make_small(seed, positions=2, samples=10, gates=gates)

    def choose(index: int) -> ExitChoice | None:
        heads = problem.positions[index].heads
        number = data.draw(st.sampled_from([None, *range(len(heads))]))
        if number is None:
            return None
        # Above the highest score a head would cost and do nothing.
        below = [0.0, *np.unique(heads[number].score)[:-1].tolist()]
        return ExitChoice(number, data.draw(st.sampled_from(below)))

    setting: Setting = (choose(0), choose(1))
    figures = problem.evaluate(setting)
    gains, costs = every_setting(problem)
    same = (gains == round(figures.accuracy * most(problem))) & (abs(costs - figures.cost) < 1e-12)
    assert same.any()


problems = st.builds(
    make_small,
    st.integers(0, 10**6),
    positions=st.integers(1, 4),
    types=st.integers(1, 3),
    samples=st.integers(1, 60),
    grid=st.sampled_from([3, 20, 10**6]),
    gates=st.booleans(),
)


def most(problem: Problem) -> int:
    """The gain of a setting that loses nothing."""
    return len(problem) * problem.steps


@settings(max_examples=25, deadline=None)
@given(problems)
def test_the_front_is_what_its_settings_do(problem):
    """Every point is a setting whose gain and cost are exactly those of running it on the records."""
    front = exact.search(problem, WEIGHTS[::5]).front
    points = front.points().tolist()
    for point, setting in zip(points, front.settings(), strict=True):
        figures = problem.evaluate(setting)
        assert round(figures.accuracy * most(problem)) == point
        assert figures.cost == pytest.approx(front.bound[point], abs=1e-9)
    for before, after in pairwise(points):
        assert front.bound[before] < front.bound[after]
    assert (
        any(setting == problem.off for setting in front.settings())
        or min(front.bound[problem.full_gain :]) <= problem.full_cost
    )


@settings(max_examples=25, deadline=None)
@given(problems, st.floats(0.5, 1))
def test_no_single_change_of_a_solved_weights_setting_helps(problem, weight):
    found = exact.search(problem, [weight])
    assert found.solved == 1
    points = found.front.points()
    scores = objective(problem, weight, points, found.front.bound[points])
    best = found.front.setting(int(points[np.argmin(scores)]))
    for index, position in enumerate(problem.positions):
        choices: list[ExitChoice | None] = [None]
        for number, head in enumerate(position.heads):
            choices += [ExitChoice(number, float(t)) for t in [0, *np.unique(head.score)]]
        for choice in choices:
            figures = problem.evaluate((*best[:index], choice, *best[index + 1 :]))
            gain = figures.accuracy * most(problem)
            assert objective(problem, weight, gain, figures.cost) >= min(scores) - 1e-9


@settings(max_examples=25, deadline=None)
@given(problems, st.data())
def test_lines_are_walked_the_same_whatever_was_walked_before(problem, data):
    """They share what lies before and after a position; every point has to be what running its setting gives."""
    lines, setting = Lines(problem), problem.off
    for _ in range(6):
        index = data.draw(st.integers(0, len(setting) - 1))
        around = lines.around(setting, index)
        for number, head in enumerate(problem.positions[index].heads):
            walk = lines.walk(around, index, number)
            on = ExitChoice(number, float(data.draw(st.sampled_from(head.score.tolist()))))
            setting = (*setting[:index], on, *setting[index + 1 :])
            leaving, gain = problem.leaving(setting), problem.evaluate(setting).accuracy * most(problem)
            reached = (around.gain, around.cost + around.arrived.count * head.cost)
            if len(leaving[index]):
                reached = walk.gain[len(leaving[index]) - 1], walk.cost[len(leaving[index]) - 1]
            assert reached == (round(gain), pytest.approx(problem.cost(setting) * len(problem)))
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
