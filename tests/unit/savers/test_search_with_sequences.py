"""Searching with heads that need others: what a setting costs, and that none is cheaper than those found."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dyce_calibration.records import Records
from dyce_calibration.search.costs import CostTable
from dyce_calibration.search.problem import ExitChoice, Setting, make_problem
from dyce_calibration.search.run import Search, run
from dyce_calibration.search.select import restrict_records
from dyce_calibration.search.subproblems import subproblems
from dyce_runtime.bundle.manifest import BUILTIN
from dyce_runtime.errors import DataError
from tests.unit.savers.test_search_with_savers import WEIGHTS, check_that_none_is_better

ESN = "esn1x8"
HEADS = (("saver0", BUILTIN), ("1", "mlp"), ("1", ESN), ("2", "mlp"), ("2", ESN))
# The saver 5 units, the base 40, 70 and 100 (uncut: 90).
OF_HEADS = {"saver0": {BUILTIN: 0.0}, "1": {"mlp": 1.0, ESN: 4.0}, "2": {"mlp": 2.0, ESN: 3.0}}
NEEDS = {"1": {ESN: (("saver0", BUILTIN),)}, "2": {ESN: (("saver0", BUILTIN), ("1", ESN))}}
BACKBONE = {"saver0": 5.0, "1": 45.0, "2": 75.0, "final": 105.0}
SPANS = {"saver0": {"final": 90.0, "2": 62.0}}
COSTS = CostTable("ms", BACKBONE, OF_HEADS, 90.0, spans=SPANS, savers=("saver0",), needs=NEEDS)


def make_records(count: int, seed: int) -> Records:
    """Confidences on a coarse grid, higher where a head is right."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, count)
    right = random.random((count, 6)) < np.array([0.6, 0.5, 0.7, 0.7, 0.85, 0.95])
    sure = np.round((0.3 * random.random(right.shape) + 0.5 * right * random.random(right.shape)) * 4) / 4
    predictions = np.where(right, labels[:, None], (labels[:, None] + 1) % 3)
    hashes, split = np.arange(count, dtype=np.uint64), np.full(count, "search")
    return Records.of_single_label(HEADS, predictions, sure.astype(np.float32), labels, hashes, split)


def by_hand(records: Records, setting: Setting) -> tuple[int, float]:
    """Right answers and mean cost, sample after sample, piece after piece."""
    saver, first, second = setting
    if not any(setting):
        return int((records.predictions[:, 5] == records.labels).sum()), 1.0
    later = second is not None and second.head == 1
    early = later or (first is not None and first.head == 1)
    right, paid = 0, 0.0
    for sure, said, label in zip(records.scores, records.predictions, records.labels, strict=True):
        cost, left, behind = 0.0, None, None  # the exit behind which the next piece of the base starts
        if saver is not None or early:
            cost += 5
        if saver is not None and sure[0] > np.float32(saver.threshold):
            left = 0
        if left is None and (first is not None or early):
            cost, behind = cost + 40, 1
            cost += 4 if early else 0
            if first is not None:
                cost += 1 if first.head == 0 else 0
                left = 1 + first.head if sure[1 + first.head] > np.float32(first.threshold) else None
        if left is None and second is not None:
            cost += (30 if behind else 62) + (2 if second.head == 0 else 3)
            behind = 2
            left = 3 + second.head if sure[3 + second.head] > np.float32(second.threshold) else None
        if left is None:
            cost += {None: 90, 1: 60, 2: 30}[behind]
        right += int(said[5 if left is None else left] == label)
        paid += cost
    return right, paid / len(records) / 90


def ons(heads: int, levels: int = 4) -> st.SearchStrategy[ExitChoice | None]:
    thresholds = st.sampled_from([n / levels for n in range(levels + 1)])
    return st.none() | st.builds(ExitChoice, st.integers(0, heads - 1), thresholds)


@given(st.tuples(ons(1), ons(2), ons(2)), st.integers(1, 20), st.integers(0, 100))
def test_a_setting_costs_what_runs_whether_or_not_samples_leave_there(setting, count, seed):
    records = make_records(count, seed)
    found = make_problem(records, COSTS).evaluate(setting)
    right, cost = by_hand(records, setting)
    assert found.accuracy == pytest.approx(right / count)
    assert found.cost == pytest.approx(cost)


@settings(max_examples=5)
@given(st.integers(0, 10_000))
def test_no_setting_is_better_than_those_found(seed):
    records = make_records(30, seed)
    problem = make_problem(records, COSTS)
    found = run(problem, None, Search(weights=WEIGHTS))
    thresholds = [n / 4 for n in range(4)]
    levels = [[None, *(ExitChoice(head, t) for head in range(heads) for t in thresholds)] for heads in (1, 2, 2)]
    every = np.array([by_hand(records, setting) for setting in product(*levels)])
    check_that_none_is_better(problem, found, every)


def test_along_every_chain_at_least_what_runs_is_paid_and_along_one_no_more():
    problem = make_problem(make_records(10, 0), COSTS)
    exactly = set()
    for chain in subproblems(problem):
        positions = chain.problem.positions
        for heads in product(*(range(len(position.heads)) for position in positions)):
            setting = tuple(ExitChoice(head, 0.5) for head in heads)
            whole = np.array(problem.costs(chain.whole(setting)))
            places = [*(k for k, _ in chain.kept), 3]
            along = np.array(chain.problem.costs(setting))
            assert (along >= whole[places] - 1e-12).all(), "what is not used may be dearer"
            if np.allclose(along, whole[places]):
                exactly.add(tuple((exit, on.head) for exit, on in problem.exits(chain.whole(setting)).items()))
    for types in product((BUILTIN,), ("mlp", ESN), ("mlp", ESN)):
        assert tuple(zip(("saver0", "1", "2"), types, strict=True)) in exactly


def test_a_head_that_needs_one_without_records_is_refused():
    records = restrict_records(make_records(5, 0), {("saver0", BUILTIN), ("2", ESN)})
    with pytest.raises(DataError, match=f"head {ESN} at exit 1 was not recorded, but a recorded head needs it"):
        make_problem(records, COSTS)


@pytest.mark.parametrize(
    ("needs", "message"),
    [
        ({"1": {ESN: (("2", ESN),)}}, f"head {ESN} at exit 1 needs {ESN} at 2, which is not an earlier head"),
        ({"2": {ESN: (("1", "mlp9"),)}}, "needs mlp9 at 1"),
    ],
)
def test_a_table_whose_heads_need_what_does_not_run_before_them_is_refused(needs, message):
    with pytest.raises(DataError, match=message):
        CostTable("ms", BACKBONE, OF_HEADS, 90.0, savers=("saver0",), needs=needs).check()
