"""Searching with savers: what a setting costs, and that none is cheaper than those found."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dyce_calibration.records import Records
from dyce_calibration.search import exact
from dyce_calibration.search.costs import CostTable
from dyce_calibration.search.problem import ExitChoice, Problem, SegmentRange, Setting, make_problem
from dyce_calibration.search.run import Outcome, Search, run
from dyce_calibration.search.subproblems import subproblems
from dyce_runtime.bundle.manifest import BUILTIN
from dyce_runtime.errors import DataError

HEADS = (("saver0.1", "mlp"), ("saver0", BUILTIN), ("saver1", BUILTIN), ("4", "mlp"))
# Up to the exit: the first saver 3 and 5 units, the second one 20, the base 40 and 100 (uncut: 90).
OF_HEADS = {"saver0.1": {"mlp": 1.0}, "saver0": {BUILTIN: 0.0}, "saver1": {BUILTIN: 0.5}, "4": {"mlp": 2.0}}
COSTS = CostTable(
    "ms",
    {"saver0.1": 3.0, "saver0": 5.0, "saver1": 25.0, "4": 65.0, "final": 125.0},
    OF_HEADS,
    90.0,
    spans={"saver1": {"final": 90.0}},
    savers=("saver0", "saver1"),
)
WEIGHTS = 60


def make_records(count: int, seed: int) -> Records:
    """Confidences on a coarse grid, higher where a head is right."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, count)
    right = random.random((count, 5)) < np.array([0.5, 0.6, 0.7, 0.8, 0.95])
    sure = np.round((0.3 * random.random(right.shape) + 0.5 * right * random.random(right.shape)) * 8) / 8
    predictions = np.where(right, labels[:, None], (labels[:, None] + 1) % 3)
    hashes, split = np.arange(count, dtype=np.uint64), np.full(count, "search")
    return Records.of_single_label(HEADS, predictions, sure.astype(np.float32), labels, hashes, split)


def by_hand(records: Records, setting: Setting) -> tuple[int, float]:
    """Right answers and mean cost, sample after sample, model after model."""
    right, paid = 0, 0.0
    first, at, second, early = setting
    for sure, said, label in zip(records.scores, records.predictions, records.labels, strict=True):

        def leaves(on: ExitChoice | None, column: int, row: np.ndarray = sure) -> bool:
            return on is not None and bool(row[column] > np.float32(on.threshold))

        cost, left = 0.0, None
        if first or at:
            cost += 3 + (1 if first else 0)
            left = 0 if leaves(first, 0) else None
        if left is None and at:
            cost += 2
            left = 1 if leaves(at, 1) else None
        if left is None and second:
            cost += 20.5
            left = 2 if leaves(second, 2) else None
        if left is None and early:
            cost += 40 + 2
            left = 3 if leaves(early, 3) else None
            cost += 60 if left is None else 0
        elif left is None:
            cost += 90
        right += int(said[4 if left is None else left] == label)
        paid += cost
    return right, paid / len(records) / 90


ons = st.none() | st.builds(ExitChoice, st.just(0), st.sampled_from([n / 8 for n in range(9)]))


@given(st.tuples(ons, ons, ons, ons), st.integers(1, 20), st.integers(0, 100))
def test_a_setting_costs_what_its_models_cost_one_by_one(setting, count, seed):
    records = make_records(count, seed)
    found = make_problem(records, COSTS).evaluate(setting)
    right, cost = by_hand(records, setting)
    assert found.accuracy == pytest.approx(right / count)
    assert found.cost == pytest.approx(cost)


@settings(max_examples=3)
@given(st.integers(0, 10_000))
def test_no_setting_is_better_than_those_found(seed):
    records = make_records(30, seed)
    problem = make_problem(records, COSTS)
    found = run(problem, None, Search(weights=WEIGHTS))
    levels = [None, *(ExitChoice(0, n / 8) for n in range(8))]
    every = np.array([by_hand(records, setting) for setting in product(levels, repeat=4)])
    check_that_none_is_better(problem, found, every)


def check_that_none_is_better(problem: Problem, found: Outcome, every: np.ndarray) -> None:
    """Compare what was found with right answers and cost of every setting, weight by weight."""
    for odds in np.geomspace(0.5, 2000, WEIGHTS):
        weight = odds / (1 + odds)
        lowest = (weight * (1 - every[:, 0] / problem.full_gain) + (1 - weight) * every[:, 1]).min()
        reached = (weight * (1 - found.accuracy * len(problem) / problem.full_gain) + (1 - weight) * found.cost).min()
        assert reached <= lowest + 1e-9


def test_a_saver_that_ends_nowhere_is_refused():
    with pytest.raises(DataError, match=r"savers that end at \['saver9'\]"):
        CostTable("ms", COSTS.backbone, OF_HEADS, 90.0, savers=("saver9",)).check()


def test_spans_everywhere_leave_the_cost_of_savers_alone():
    table = CostTable("ms", COSTS.backbone, OF_HEADS, 90.0, savers=COSTS.savers).with_all_spans()
    assert [table.backbone[exit] for exit in ("saver0.1", "saver0", "saver1")] == [3.0, 5.0, 25.0]
    assert table.backbone["final"] == pytest.approx(25 + 90)
    assert table.backbone["4"] == pytest.approx(25 + 40 * 0.9)
    assert table.heads["4"]["mlp"] == pytest.approx(2 + 10)
    assert table.heads["saver1"] == OF_HEADS["saver1"]


def many_savers(samples: int = 60) -> Problem:
    """Four savers of five exits each, before a base of three: 6^4 combinations of where savers end."""
    random = np.random.default_rng(0)
    exits = [f"saver{s}.{e}" if e < 5 else f"saver{s}" for s in range(4) for e in range(1, 6)] + ["1", "2", "3"]
    heads = tuple((exit, "h") for exit in exits)
    labels, right = random.integers(0, 3, samples), random.random((samples, 24)) < np.linspace(0.4, 0.95, 24)
    sure = (0.5 * random.random(right.shape) + 0.4 * right).astype(np.float32)
    predictions = np.where(right, labels[:, None], (labels[:, None] + 1) % 3)
    hashes, split = np.arange(samples, dtype=np.uint64), np.full(samples, "search")
    each = [0.02] * 5 + [0.1] * 5 + [0.5] * 5 + [2.0] * 5 + [10.0] * 4
    backbone = dict(zip([*exits, "final"], np.cumsum(each).tolist(), strict=True))
    costs = CostTable("macs", backbone, {e: {"h": 0.01} for e in exits}, 40.0, savers=tuple(exits[4:20:5]))
    return make_problem(Records.of_single_label(heads, predictions, sure, labels, hashes, split), costs.check())


def test_a_cascade_takes_no_more_work_than_one_model_and_a_first_look(monkeypatch: pytest.MonkeyPatch):
    shares: dict[bool, list[float]] = {False: [], True: []}

    def search(*arguments: Any, around: bool = True, share: float = 1.0) -> exact.Found:
        shares[around].append(share)
        return whole(*arguments, around=around, share=share)

    whole = exact.search
    monkeypatch.setattr(exact, "search", search)
    found = run(many_savers(), None, Search(weights=20))
    assert 16 < len(shares[False]) <= 64
    assert 0 < len(shares[True]) <= 16
    assert [sum(of_kind) for of_kind in shares.values()] == pytest.approx([1, 1])
    used = {index for setting in found.settings for index, choice in enumerate(setting) if choice}
    assert any(index < 5 for index in used), "savers are not left out for the sake of speed"
    assert any(index >= 20 for index in used)


def test_sets_of_many_spans_are_few():
    """Forty spans that do not overlap have 2^40 subsets."""
    problem = many_savers()
    position, spans = problem.positions[0], tuple(SegmentRange(2 * k, 2 * k + 1, 1.0) for k in range(40))
    chain = replace(problem, positions=(position,) * 81, spans=spans, savers=())
    assert 1 < len(subproblems(chain)) <= 8
