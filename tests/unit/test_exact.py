from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dyce_calibration.costs import CostTable
from dyce_calibration.records import Records
from dyce_calibration.search import exact
from dyce_calibration.search.problem import On, Problem, make_problem

WEIGHTS = np.linspace(0.5, 1, 26).tolist()


def make_small(seed: int, positions: int = 3, types: int = 2, samples: int = 40, grid: int = 100) -> Problem:
    """Random records; on a grid, so that some confidences are equal."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 5, samples)
    heads = tuple((str(p + 1), f"type{t}") for p in range(positions) for t in range(types))
    quality = [0.5 + 0.4 * (column // types) / positions for column in range(len(heads))] + [0.9]
    right = random.random((samples, len(quality))) < quality
    sure = 0.5 * random.beta(3, 2, right.shape) + 0.4 * right * random.random(right.shape)
    costs = CostTable(
        "macs",
        {**{str(p + 1): float(cost) for p, cost in enumerate(np.sort(random.random(positions)))}, "final": 1.0},
        {str(p + 1): {f"type{t}": float(random.random()) * 0.05 for t in range(types)} for p in range(positions)},
        1.0,
    )
    return make_problem(
        Records(
            heads,
            np.where(right, labels[:, None], (labels[:, None] + 1) % 5),
            (np.round(sure * grid) / grid).astype(np.float32),
            labels,
            np.arange(samples, dtype=np.uint64),
            np.full(samples, "search"),
        ),
        costs,
    )


def every_setting(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Right answers and cost per sample of all settings of three positions that differ in what they do."""
    first, second, third = (
        [(np.zeros(len(problem), bool), problem.correct, 0.0, 0.0)]
        + [
            (head.confidence > threshold, head.correct, position.cost, head.cost)
            for head in position.heads
            for threshold in [0, *np.unique(head.confidence)[:-1]]
        ]
        for position in problem.positions
    )
    # The last position is done for all of its choices at once.
    right = np.stack([np.where(leave, correct, problem.correct) for leave, correct, _, _ in third])
    cost = np.stack([np.where(leave, cost, problem.cost) + head for leave, _, cost, head in third])
    rights, costs = [], []
    for leave_a, right_a, cost_a, head_a in first:
        for leave, right_b, cost_b, head_b in second:
            leave_b, heads = leave & ~leave_a, head_a + head_b
            rest = ~leave_a & ~leave_b
            done = right_a[leave_a].sum() + right_b[leave_b].sum()
            paid = leave_a.sum() * (cost_a + head_a) + leave_b.sum() * (cost_b + heads)
            rights.append(done + right[:, rest].sum(1))
            costs.append(paid + cost[:, rest].sum(1) + rest.sum() * heads)
    return np.concatenate(rights), np.concatenate(costs) / len(problem)


@pytest.mark.parametrize("seed", range(12))
def test_small_problems_are_solved_to_the_optimum(seed):
    problem = make_small(seed)
    rights, costs = every_setting(problem)
    front = exact.search(problem, WEIGHTS).front
    points = front.points()
    base = problem.right
    for weight in (0.5, 0.8, 0.95):
        optimum = (weight * (1 - rights / base) + (1 - weight) * costs).min()
        found = (weight * (1 - points / base) + (1 - weight) * front.bound[points]).min()
        assert found == pytest.approx(optimum, abs=1e-9)


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
    base = max(problem.right, 1)

    def objective(accuracy: float, cost: float) -> float:
        return weight * (1 - accuracy * len(problem) / base) + (1 - weight) * cost

    scores = [objective(point / len(problem), found.front.bound[point]) for point in points]
    best = found.front.setting(int(points[np.argmin(scores)]))
    for index, position in enumerate(problem.positions):
        choices: list[On | None] = [None]
        for number, head in enumerate(position.heads):
            choices += [On(number, float(t)) for t in [0, *np.unique(head.confidence)]]
        for choice in choices:
            figures = problem.evaluate((*best[:index], choice, *best[index + 1 :]))
            assert objective(figures.accuracy, figures.cost) >= min(scores) - 1e-9


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
