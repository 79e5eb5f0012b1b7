from __future__ import annotations

import numpy as np
import pytest

from dyce_calibration.search.costs import CostTable
from dyce_calibration.search.select import restrict_costs, restrict_records, select_exits, used_heads
from tests.unit.promises.test_choose import make_records as two_exits

SHARES = {"1": 10.0, "2": 30.0, "3": 50.0, "4": 70.0, "final": 100.0}
COSTS = CostTable("macs", SHARES, {exit: {"good": 0.5, "poor": 0.5} for exit in ("1", "2", "3", "4")}, full=100.0)


def make_records(quality: dict[str, float], count: int = 3000):
    """A good and a poor head at each of four exits; ``quality`` is how often the good one is right."""
    random = np.random.default_rng(0)
    few = two_exits(count)
    predictions, confidences, heads = [], [], []
    for exit in ("1", "2", "3", "4"):
        for type, share in (("good", quality[exit]), ("poor", 0.1)):
            right = random.random(count) < share
            predictions.append(np.where(right, few.labels, (few.labels + 1) % 10))
            confidences.append(np.clip(np.where(right, random.beta(6, 2, count), random.beta(3, 4, count)), 0.1, 1))
            heads.append((exit, type))
    columns = np.stack(predictions, 1), np.stack(confidences, 1).astype(np.float32)
    return few.with_columns([]).insert(0, tuple(heads), *columns)


def test_an_exit_that_knows_most_for_its_price_comes_first():
    records = make_records({"1": 0.1, "2": 0.9, "3": 0.2, "4": 0.92})
    assert select_exits(records, COSTS, 1) == ["2"]
    assert set(select_exits(records, COSTS, 2)) <= {"2", "4"}


def test_no_more_than_asked_for_and_in_execution_order():
    records = make_records({"1": 0.6, "2": 0.75, "3": 0.85, "4": 0.93})
    for most in (1, 2, 3, 9):
        exits = select_exits(records, COSTS, most)
        assert 1 <= len(exits) <= min(most, 4)
        assert exits == sorted(exits)


def test_exits_that_add_nothing_are_not_chosen():
    assert select_exits(make_records({"1": 1.0, "2": 1.0, "3": 1.0, "4": 1.0}), COSTS, 4) == ["1"]


def test_only_heads_that_are_used_are_kept():
    records = make_records({"1": 0.6, "2": 0.75, "3": 0.85, "4": 0.93})
    kept = used_heads(records, COSTS, ["2", "4"])
    assert kept <= {("2", "good"), ("4", "good"), ("2", "poor"), ("4", "poor")}
    assert ("2", "good") in kept


def test_restricted_records_and_costs_hold_the_same_numbers():
    records = make_records(dict.fromkeys(("1", "2", "3", "4"), 0.8))
    heads = {("2", "poor"), ("4", "good")}
    fewer, costs = restrict_records(records, heads), restrict_costs(COSTS, heads)
    assert fewer.heads == (("2", "poor"), ("4", "good"))
    np.testing.assert_array_equal(fewer.predictions, records.predictions[:, [3, 6, 8]])
    assert costs.backbone == {"2": 30.0, "4": 70.0, "final": 100.0}
    assert costs.heads == {"2": {"poor": 0.5}, "4": {"good": 0.5}}
    assert costs.check() == costs


@pytest.mark.parametrize("most", [1, 2])
def test_progress_sees_every_round(most):
    seen = []
    records = make_records({"1": 0.6, "2": 0.75, "3": 0.85, "4": 0.93})
    select_exits(records, COSTS, most, lambda rounds: (seen.append(n) or n for n in rounds))
    assert seen == list(range(most))
