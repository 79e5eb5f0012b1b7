from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dyce_calibration.evaluate import evaluate
from dyce_calibration.records import Costs, Records
from dyce_calibration.search import ALLOWED_LOSS, search
from dyce_runtime.configuration import Configurations, Entry, ExitSetting

HEADS = (("2", "mlp1x1000"), ("5", "mlp1x1000"))
COSTS = Costs({"2": 25.0, "5": 60.0, "final": 100.0}, {HEADS[0]: 1.0, HEADS[1]: 2.0})


def make_records(count: int, seed: int = 0, grid: int | None = None, quality: tuple[float, ...] = (0.7, 0.85, 0.95)):
    """Heads of rising quality whose confidences mean something; on a grid, many of them are equal."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 10, count)
    predictions, confidences = [], []
    for share in quality:
        right = random.random(count) < share
        predictions.append(np.where(right, labels, (labels + 1) % 10))
        sure = np.clip(np.where(right, random.beta(6, 2, count), random.beta(3, 4, count)), 0.1, 1)
        confidences.append(np.ceil(sure * grid) / grid if grid else sure)
    return Records(
        HEADS,
        np.stack(predictions, 1),
        np.stack(confidences, 1).astype(np.float32),
        labels,
        np.arange(count, dtype=np.uint64),
        random.permutation(np.repeat(["search", "test"], [count - count // 2, count // 2])),
    )


def shared(threshold: float) -> dict[str, ExitSetting]:
    return {exit: ExitSetting(head, threshold) for exit, head in HEADS}


def every_shared_threshold(records: Records) -> list[dict[str, ExitSetting]]:
    """One per way in which a shared threshold can divide the confidences of the search split."""
    values = np.unique(records.of_split("search").confidences[:, :-1])
    return [{}, *(shared(float(low)) for low in values[:-1])]  # strictly above ``low`` leaves


many = st.builds(make_records, st.integers(4, 60), st.integers(0, 10**6), st.sampled_from([None, 4, 20]))


@given(many)
def test_named_configurations_are_the_cheapest_that_lose_no_more_than_allowed(records):
    found = search(records, COSTS)
    on = records.of_split("search")
    figures = [evaluate(on, COSTS, exits) for exits in every_shared_threshold(records)]
    for name, allowed in ALLOWED_LOSS.items():
        fitting = [f.cost for f in figures if f.loss <= allowed + 1e-12]
        assert found.named[name].search.loss <= allowed + 1e-12
        assert found.named[name].search.cost == pytest.approx(min(fitting), abs=1e-12)


@given(many)
def test_no_configuration_on_the_front_is_beaten_and_none_is_missing(records):
    front = search(records, COSTS).front
    for before, after in pairwise(front):
        assert before.search.cost < after.search.cost
        assert before.search.accuracy < after.search.accuracy
    on = records.of_split("search")
    for exits in every_shared_threshold(records):
        figures = evaluate(on, COSTS, exits)
        assert any(e.search.cost <= figures.cost and e.search.accuracy >= figures.accuracy for e in front)


def thresholds(found: Configurations) -> set[float]:
    entries: list[Entry] = [*found.named.values(), *found.front]
    return {setting.threshold for entry in entries for setting in entry.exits.values()}


@given(st.one_of(many, st.builds(make_records, st.just(2400), st.integers(0, 5))))
def test_thresholds_stand_midway_between_neighbouring_confidences(records):
    """Routing is strict: a sample leaves above its threshold, so no confidence may stand on it from above."""
    values = np.unique(records.of_split("search").confidences[:, :-1])
    for threshold in thresholds(search(records, COSTS)):
        assert threshold == np.float32(threshold)
        above = np.searchsorted(values, np.float32(threshold), side="right")
        low, high = values[above - 1], values[above]
        assert low <= threshold < high
        assert threshold == pytest.approx((float(low) + float(high)) / 2, abs=1e-7)


def test_neighbouring_numbers_are_divided_too():
    records = make_records(40)
    low = np.float32(0.7)
    confidences = np.where(records.confidences > 0.6, np.nextafter(low, np.float32(1)), low).astype(np.float32)
    crowded = Records(records.heads, records.predictions, confidences, records.labels, records.hashes, records.split)
    assert thresholds(search(crowded, COSTS)) <= {float(low)}


def test_every_configuration_says_what_the_test_split_says():
    records = make_records(400)
    found = search(records, COSTS)
    for entry in (*found.named.values(), *found.front):
        assert entry.search == evaluate(records.of_split("search"), COSTS, entry.exits)
        assert entry.test == evaluate(records.of_split("test"), COSTS, entry.exits)


def test_samples_of_other_splits_change_nothing_but_their_own_figures():
    records = make_records(400)
    other = records.confidences.copy()
    other[records.split == "test"] = 0.5
    changed = Records(records.heads, records.predictions, other, records.labels, records.hashes, records.split)
    before, after = search(records, COSTS), search(changed, COSTS)
    assert {n: e.exits for n, e in before.named.items()} == {n: e.exits for n, e in after.named.items()}
    assert [e.exits for e in before.front] == [e.exits for e in after.front]


@given(many)
def test_there_is_always_a_full_model_and_a_setting_of_every_name(records):
    found = search(records, COSTS)
    assert list(found.named) == ["full", "accurate", "balanced", "fast"]
    assert found.named["full"].exits == {}
    costs = [found.named[name].search.cost for name in ("full", "accurate", "balanced", "fast")]
    assert costs == sorted(costs, reverse=True)


def test_heads_that_know_nothing_leave_the_full_model():
    found = search(make_records(400, quality=(0.05, 0.05, 0.99)), COSTS)
    assert found.named["accurate"].exits == {}
    assert found.named["accurate"].search.cost == 1.0


def test_confidences_that_are_all_equal_leave_the_full_model():
    records = make_records(40, grid=1)
    found = search(records, COSTS)
    assert all(entry.exits == {} for entry in found.named.values())
    assert len(found.front) == 1


def test_a_loss_of_exactly_the_allowance_is_allowed():
    count = 200  # 0.005 of them is one sample
    labels = np.zeros(count, np.int64)
    predictions = np.zeros((count, 3), np.int64)
    predictions[0, 0] = 1  # the first exit is wrong once
    confidences = np.full((count, 3), 0.9, np.float32)
    confidences[1, 0] = 0.1  # something has to stand below a threshold
    hashes = np.arange(count, dtype=np.uint64)
    once = Records(HEADS, predictions, confidences, labels, hashes, np.full(count, "search"))
    both = Records(
        HEADS,
        *(np.concatenate([getattr(once, name)] * 2) for name in ("predictions", "confidences", "labels", "hashes")),
        np.repeat(["search", "test"], count),
    )
    found = search(both, COSTS)
    assert found.named["accurate"].search.loss == pytest.approx(0.005)
    assert found.named["accurate"].search.cost < 0.3


def test_the_front_is_thinned_to_64_and_keeps_its_ends():
    records = make_records(4000)
    found = search(records, COSTS)
    assert len(found.front) == 64
    on = records.of_split("search")
    figures = [evaluate(on, COSTS, exits) for exits in every_shared_threshold(records)[::10]]
    assert found.front[0].search.cost <= min(f.cost for f in figures) + 0.01
    assert found.front[-1].search.accuracy >= max(f.accuracy for f in figures) - 0.002
