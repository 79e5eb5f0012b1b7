from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dyce_calibration.promises.choose import ALLOWED_LOSS, MOST_KEPT, choose
from dyce_calibration.records import Records
from dyce_calibration.search.costs import CostTable
from dyce_calibration.search.problem import make_problem
from dyce_calibration.search.published import samethres
from dyce_calibration.search.run import METHODS, Search, run
from dyce_runtime.bundle.configuration import Configurations
from dyce_runtime.errors import DataError, UsageError
from tests.unit.search.test_problem import evaluate

HEADS = (("2", "mlp1x1000"), ("5", "mlp1x1000"))
COSTS = CostTable(
    "macs", {"2": 25.0, "5": 60.0, "final": 100.0}, {"2": {"mlp1x1000": 1.0}, "5": {"mlp1x1000": 2.0}}, full=100.0
)
# Measured in time the uncut model is cheaper than the chain of its segments.
MS = CostTable("ms", {**COSTS.backbone, "final": 104.0}, COSTS.heads, full=100.0)
QUICK = Search(weights=8)
# On a device without SciPy the published searches are not there.
HERE = METHODS if find_spec("scipy") else ("exact", "samethres")


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
    split = np.resize(["search", "search", "test", "certification"], count)
    return Records.of_single_label(
        HEADS,
        np.stack(predictions, 1),
        np.stack(confidences, 1).astype(np.float32),
        labels,
        np.arange(count, dtype=np.uint64),
        random.permutation(split),
    )


many = st.builds(make_records, st.integers(48, 90), st.integers(0, 10**6), st.sampled_from([None, 4, 20]))


@settings(max_examples=20, deadline=None)
@given(many)
def test_named_configurations_lose_no_more_than_allowed_and_no_shared_threshold_is_cheaper(records):
    found = choose(records, COSTS, QUICK)
    assert list(found.named)[:4] == ["full", *ALLOWED_LOSS]
    assert [found.named[name].allowed_loss for name in ("full", *ALLOWED_LOSS)] == [None, *ALLOWED_LOSS.values()]
    assert found.named["full"].exits == {}
    problem = make_problem(records.of_split("search"), COSTS)
    shared = [problem.evaluate(setting) for setting in samethres(problem)]
    for name, allowed in ALLOWED_LOSS.items():
        figures = found.named[name].search
        assert figures.loss <= allowed + 1e-12
        assert figures.cost <= min([1.0, *(f.cost for f in shared if f.loss <= allowed)]) + 1e-9
    costs = [found.named[name].search.cost for name in ("full", *ALLOWED_LOSS)]
    assert costs == sorted(costs, reverse=True)


@settings(max_examples=20, deadline=None)
@given(many, st.sampled_from(HERE))
def test_no_configuration_on_the_front_is_beaten(records, method):
    front = choose(records, COSTS, Search(method=method, weights=3)).front
    for before, after in pairwise(front):
        assert before.search.cost < after.search.cost
        assert before.search.accuracy < after.search.accuracy


def test_every_configuration_says_what_both_splits_say():
    records = make_records(400)
    found = choose(records, COSTS)
    for entry in (*found.named.values(), *found.front):
        assert entry.search == evaluate(records.of_split("search"), COSTS, entry.exits)
        assert entry.test == evaluate(records.of_split("test"), COSTS, entry.exits)
    assert (found.unit, found.method) == ("macs", "exact")


def exits(found: Configurations):
    return [entry.exits for entry in (*found.named.values(), *found.front)]


@pytest.mark.parametrize("split", ["test", "certification"])
def test_other_splits_choose_nothing(split):
    records = make_records(400)
    other = records.scores.copy()
    other[records.split == split] = 0.5
    assert exits(choose(records, COSTS)) == exits(choose(replace(records, scores=other), COSTS))


def test_heads_that_know_nothing_leave_the_full_model():
    found = choose(make_records(400, quality=(0.0, 0.0, 0.99)), COSTS, QUICK)
    assert found.named["accurate"].exits == {}
    assert found.named["accurate"].search.cost == 1.0


def test_confidences_that_are_all_equal_part_nothing():
    """An exit then takes all samples or none."""
    for entry in choose(make_records(80, grid=1), COSTS, QUICK).front:
        assert set(entry.search.share_per_exit) == {0.0, 1.0}


def test_a_loss_of_exactly_the_allowance_is_allowed():
    count = 200  # 0.005 of them is one sample
    predictions = np.zeros((count, 3), np.int64)
    predictions[0, 0] = 1  # the first exit is wrong once
    confidences = np.full((count, 3), 0.9, np.float32)
    records = Records.of_single_label(
        HEADS,
        *(np.concatenate([part] * 3) for part in (predictions, confidences, np.zeros(count, np.int64))),
        np.arange(3 * count, dtype=np.uint64),
        np.repeat(["search", "test", "certification"], count),
    )
    found = choose(records, COSTS, QUICK)
    assert found.named["accurate"].search.loss == pytest.approx(0.005)
    assert found.named["accurate"].search.cost < 0.3


def test_a_bundle_keeps_64_of_the_front_and_both_ends():
    found = choose(make_records(8000), COSTS)
    assert len(found.front) == MOST_KEPT
    assert found.front[0].search.cost <= 0.27
    assert found.front[-1].search.accuracy >= found.named["full"].search.accuracy


@pytest.mark.parametrize("limit", [{"max_loss": 0.03}, {"max_cost": 0.5}])
def test_a_configuration_can_be_chosen_by_its_loss_or_its_cost(limit):
    records = make_records(2000)
    found = choose(records, COSTS, Search(weights=40, **limit))
    chosen = found.named["chosen"].search
    whole = run(make_problem(records.of_split("search"), COSTS), None, Search(weights=40))
    if "max_loss" in limit:
        assert chosen.cost == pytest.approx(whole.cost[whole.base - whole.accuracy <= 0.03].min())
    else:
        assert chosen.accuracy == pytest.approx(whole.accuracy[whole.cost <= 0.5].max())


def test_a_limit_that_nothing_meets_is_refused_with_what_there_is():
    with pytest.raises(UsageError, match=r"the cheapest costs 0\.2"):
        choose(make_records(400), COSTS, Search(weights=8, max_cost=0.1))


def test_conservative_figures_are_lower_and_the_fewer_samples_the_lower():
    pytest.importorskip("scipy", reason="SciPy is not installed")
    few, many = (make_problem(make_records(count).of_split("search"), COSTS) for count in (100, 10_000))
    for problem, gap in ((few, 0.01), (many, 0.001)):
        plain, careful = (run(problem, None, Search(weights=8, conservative=c)) for c in (False, True))
        assert careful.base < plain.base - gap / 3
        assert plain.base - careful.base < 10 * gap
        assert (careful.counted < careful.accuracy).all()


def test_luck_on_few_samples_is_noticed_on_the_test_samples(caplog: pytest.LogCaptureFixture):
    """A head that is right on all of the few search samples, and on six of ten others."""
    records = make_records(4000, quality=(0.6, 0.7, 0.95))
    few = records.take((records.split != "search") | (np.cumsum(records.split == "search") <= 40))
    predictions = few.predictions.copy()
    predictions[few.split == "search", 0] = few.labels[few.split == "search"]
    with caplog.at_level("WARNING", logger="dyce_calibration"):
        found = choose(few.with_classes(predictions), COSTS, QUICK)
    assert found.named["fast"].test.loss > ALLOWED_LOSS["fast"]
    assert "are chosen on 40 samples and may lose more on others: on test samples accurate loses" in caplog.text
    assert f"fast loses {100 * found.named['fast'].test.loss:.1f} points instead of 2" in caplog.text
    caplog.clear()
    with caplog.at_level("WARNING", logger="dyce_calibration"):
        choose(make_records(40_000), COSTS, QUICK)
    assert caplog.text == ""


# --- certificates ----------------------------------------------------------------------------------------------------


def test_what_is_certified_says_so_and_is_the_safer_part_of_the_front():
    found = choose(make_records(40_000), COSTS, QUICK)
    certified = [entry.certified is not None for entry in found.front if entry.exits]
    assert any(certified), "some configurations are safe"
    assert not all(certified), "and some lose too much"
    assert certified == sorted(certified)
    for entry in found.front:
        if entry.certified is not None:
            assert (entry.certified.epsilon, entry.certified.delta) == (0.01, 0.05)
            assert entry.certified.samples == 10_000
            assert entry.test.loss < 0.02
    promised = found.front[certified.index(True)]
    assert found.named["certified"] == msgspec.structs.replace(promised, allowed_loss=0.01)
    assert found.named["full"].certified is not None
    assert found.named["fast"].certified is None
    assert found.note == ""


def test_too_few_samples_certify_nothing_and_say_how_many_would():
    found = choose(make_records(200), COSTS, QUICK)
    assert all(entry.certified is None for entry in found.front if entry.exits)
    assert "50 certification samples do not show a loss of at most 1 point with probability 0.95; about" in found.note
    assert "certified" not in found.named


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["test", "certification"])
def test_samples_on_two_sides_are_refused(split):
    records = make_records(80)
    hashes = records.hashes.copy()
    hashes[np.flatnonzero(records.split == split)[0]] = hashes[np.flatnonzero(records.split == "search")[0]]
    with pytest.raises(DataError, match=f"1 samples are in the splits 'search' and '{split}'"):
        choose(replace(records, hashes=hashes), COSTS, QUICK)


def test_fewer_samples_than_classes_are_refused():
    with pytest.raises(DataError, match="8 samples to search on and 10 classes"):
        choose(make_records(16), COSTS, QUICK)


def test_a_missing_split_is_refused():
    records = make_records(80)
    with pytest.raises(DataError, match="no samples of the split 'certification'"):
        choose(replace(records, split=np.where(records.split == "certification", "x", records.split)), COSTS, QUICK)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"method": "newton"}, "no search method"), ({"weights": 0}, "0 weights"), ({"epsilon": 0.0}, "epsilon is 0")],
)
def test_a_search_that_makes_no_sense_is_refused(wrong, message):
    with pytest.raises(UsageError, match=message):
        Search(**wrong)


# --- other samples ---------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(many, st.sampled_from(HERE))
def test_what_test_samples_say_is_what_running_them_says(records, method):
    """The front is replayed on them line by line; one by one it has to be the same."""
    chosen_on, reported_on = (make_problem(records.of_split(split), MS) for split in ("search", "test"))
    found = run(chosen_on, reported_on, Search(method=method, weights=3))
    for index, setting in enumerate(found.settings):
        on_search, on_test = chosen_on.evaluate(setting), reported_on.evaluate(setting)
        assert found.accuracy[index] == pytest.approx(on_search.accuracy, abs=1e-12)
        assert found.cost[index] == pytest.approx(on_search.cost, abs=1e-9)
        assert found.test_accuracy[index] == pytest.approx(on_test.accuracy, abs=1e-12)
        assert found.test_cost[index] == pytest.approx(on_test.cost, abs=1e-9)


@pytest.mark.parametrize("method", HERE)
def test_the_full_model_costs_one_on_other_samples_too(method):
    """It runs uncut: what the chain would cost is not paid."""
    records = make_records(400, quality=(0.0, 0.0, 0.99))
    chosen_on, reported_on = (make_problem(records.of_split(split), MS) for split in ("search", "test"))
    found = run(chosen_on, reported_on, Search(method=method, weights=3))
    full = found.settings.index((None, None))
    assert (found.cost[full], found.test_cost[full]) == (1.0, 1.0)
