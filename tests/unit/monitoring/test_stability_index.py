"""The population stability index: how far what leaves an exit is from what the records let expect."""

from __future__ import annotations

import math
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dyce_runtime import Bundle, Configuration
from dyce_runtime.monitoring.drift import population_stability_index
from dyce_runtime.monitoring.observation import Observation
from tests.bundles import on
from tests.unit.monitoring.observed import (
    EXITS,
    FAST,
    FULL,
    LATE,
    answer,
    drawn,
    leaving,
    the_report,
    with_records,
)

counts = st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), min_size=1, max_size=12)


def brute_force(expected: list[int], observed: list[int]) -> float:
    e, a = ((np.array(counts) + 0.5) / (np.array(counts) + 0.5).sum() for counts in (expected, observed))
    return float(((a - e) * np.log(a / e)).sum())


@given(counts)
def test_the_index_is_what_its_formula_says(pairs):
    expected, observed = map(list, zip(*pairs, strict=True))
    assert population_stability_index(expected, observed) == pytest.approx(brute_force(expected, observed), abs=1e-12)


def test_the_index_of_a_known_case():
    # Shares of a half and a half against a quarter and three quarters: ln(3) / 4, but for the smoothing.
    assert population_stability_index([500_000, 500_000], [250_000, 750_000]) == pytest.approx(math.log(3) / 4, 1e-4)


@given(st.integers(0, 2**32 - 1), st.sampled_from([FAST, LATE, FULL]), st.sampled_from([5, 10]))
@settings(max_examples=30)
def test_an_observed_index_is_that_of_equally_filled_bins(tiny: Bundle, seed, configuration, bins):
    # On a grid, and observed ones beside it, so that none is at an edge.
    steps = np.arange(1, 601, dtype=np.float32)[:, None].repeat(3, axis=1) / 601
    records = np.random.default_rng(seed).permuted(steps, axis=0)
    observed = (np.floor(drawn(600, seed, sureness=3) * 600) + np.float32(0.25)) / 601
    with TemporaryDirectory() as folder:
        watch = Observation(with_records(tiny, Path(folder), records), minimum=1, bins=bins)
    watch(answer(configuration, observed), 0.01)
    report = the_report(watch)
    went, came = (np.array(leaving(samples, configuration)) for samples in (records, observed))
    on_exits = [index for index, id in enumerate(EXITS) if id in configuration.exits or id == "final"]
    assert list(report["exits"]) == [EXITS[index] for index in on_exits]
    for index in on_exits:
        expected, seen = np.sort(records[went == index, index]), observed[came == index, index]
        cuts = [math.ceil(len(expected) * k / bins) for k in range(1, bins)]
        edges = [(expected[cut - 1] + expected[cut]) / 2 for cut in cuts]
        filled = [np.histogram(part, [-1, *edges, 2])[0].tolist() for part in (expected, seen)]
        assert report["exits"][EXITS[index]]["samples"] == len(seen)
        assert report["exits"][EXITS[index]]["psi"] == pytest.approx(brute_force(*filled), abs=1e-9)
    if configuration.exits:
        shares = brute_force(*([int((exits == index).sum()) for index in on_exits] for exits in (went, came)))
        assert report["shares"]["psi"] == pytest.approx(shares, abs=1e-12)


coarse = st.integers(0, 8).map(lambda eighth: eighth / 8)


@given(st.integers(0, 2**32 - 1), coarse, coarse, st.sampled_from([8, 10, 1000]))
def test_the_records_own_samples_are_as_expected_to_the_last_one(tiny: Bundle, seed, first, second, grid):
    """Confidences are tied with each other and with thresholds; thresholds are float32, 0.1 more than the float64."""
    configuration = Configuration("drawn", on(exit3=max(first, 0.1), exit7=second))
    records = (np.random.default_rng(seed).integers(0, grid + 1, (300, 3)) / grid).astype(np.float32)
    with TemporaryDirectory() as folder:
        watch = Observation(with_records(tiny, Path(folder), records), minimum=1)
    watch(answer(configuration, records), 0.01)
    report = the_report(watch)
    exits = leaving(records, configuration)
    assert {id: found["samples"] for id, found in report["exits"].items()} == {
        id: exits.count(index) for index, id in enumerate(EXITS)
    }
    assert report["shares"]["psi"] == 0
    for found in report["exits"].values():
        assert found["psi"] in (0, None)
        assert (found["psi"] is None) == bool(found["reason"])
    assert report["drifted"] is False


def test_equal_confidences_are_in_one_bin_and_no_bin_is_empty(recorded):
    records = np.full((100, 3), 0.25, np.float32)
    records[60:, 2], records[98:, 2] = 0.5, 0.75
    watch = Observation(recorded(records), minimum=1)
    watch(answer(FULL, np.repeat(np.float32([[0, 0, 0.2], [0, 0, 0.6]]), [50, 150], axis=0)), 0.01)
    found = the_report(watch)["exits"]["final"]
    assert found["psi"] == pytest.approx(brute_force([60, 40], [50, 150]), abs=1e-12)


def test_what_engines_differ_by_is_no_drift(recorded):
    """Up to a fifth of confidences are saturated; another engine may round them otherwise."""
    records = drawn(500, 0, sureness=8)
    records[records > 0.9] = 1
    watch = Observation(recorded(records), minimum=1)
    other = np.clip(records.astype(np.float64) - 1e-6, 0, 1).astype(np.float32)
    watch(answer(LATE, other), 0.01)
    assert (the_report(watch)["exits"]["7"]["psi"], watch.drifted) == (0, False)
