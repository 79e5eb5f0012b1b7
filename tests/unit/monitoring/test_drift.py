"""Drift: when what leaves an exit is no longer what the records let expect."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from dyce_runtime import Bundle, Configuration, load
from dyce_runtime.bundle.reader import RECORDS
from dyce_runtime.errors import BundleError, UsageError
from dyce_runtime.monitoring.drift import DriftReport, Stability
from dyce_runtime.monitoring.observation import Observation
from tests.bundles import HEAD, NAMED, all_heads, make_images, on
from tests.unit.monitoring.observed import (
    FAST,
    FULL,
    LATE,
    answer,
    drawn,
    left,
    seeds,
    the_report,
    watched,
    with_records,
    write_records,
)

# --- what is drift ----------------------------------------------------------------------------------------------------


@given(seeds, watched, st.floats(0.5, 5))
@settings(max_examples=40)
def test_samples_like_those_of_the_calibration_are_no_drift(tiny: Bundle, seed, configuration, sureness):
    with TemporaryDirectory() as folder:
        watch = Observation(with_records(tiny, Path(folder), drawn(1000, seed, sureness)))
    for part in np.array_split(drawn(3000, seed + 1, sureness), 20):
        watch(answer(configuration, part), 0.01)
        assert not watch.drifted
    assert watch.drifted is False


@given(seeds, watched, st.sampled_from([0.4, 8.0]))
@settings(max_examples=40)
def test_samples_that_heads_are_more_or_less_sure_of_are_drift(tiny: Bundle, seed, configuration, sureness):
    with TemporaryDirectory() as folder:
        watch = Observation(with_records(tiny, Path(folder), drawn(1000, seed)))
    watch(answer(configuration, drawn(1000, seed + 1, sureness)), 0.01)
    assert watch.drifted is True


@pytest.mark.parametrize("records", [10, 25, 50])
def test_few_records_do_not_make_chance_look_like_drift(tiny: Bundle, tmp_path: Path, records: int):
    above = 0
    for seed in range(100):
        watch = Observation(with_records(tiny, tmp_path, drawn(records, seed)))
        watch(answer(FULL, drawn(300, seed + 1000)), 0.01)
        assert watch.drifted is False
        above += the_report(watch)["exits"]["final"]["psi"] > 0.2
    assert above, "the rule of thumb alone would have told of drift"


@pytest.mark.parametrize("records", [10, 25, 50])
def test_few_records_show_a_large_drift(recorded, records: int):
    watch = Observation(recorded(drawn(records, 0)))
    watch(answer(FULL, drawn(500, 1, sureness=30)), 0.01)
    assert watch.drifted is True


def test_drift_may_be_in_the_shares_of_the_exits_alone(recorded):
    records, observed = drawn(2000, 0), drawn(2000, 1)
    sure = observed[:, 1] > 0.5
    observed = observed[np.concatenate([np.flatnonzero(sure)[:200], np.flatnonzero(~sure)[:400]])]
    watch = Observation(recorded(records))
    watch(answer(LATE, observed), 0.01)
    report = the_report(watch)
    assert report["shares"]["psi"] > report["shares"]["limit"]
    assert all(found["psi"] < 0.2 for found in report["exits"].values())
    assert watch.drifted is True


def test_the_threshold_decides(recorded):
    drifted = {}
    for threshold in (0.2, 5.0):
        watch = Observation(recorded(drawn(1000, 0)), threshold=threshold)
        watch(answer(FULL, drawn(1000, 1, sureness=5)), 0.01)
        assert the_report(watch)["exits"]["final"]["limit"] == threshold
        drifted[threshold] = watch.drifted
    assert drifted == {0.2: True, 5.0: False}


def test_the_samples_that_thresholds_were_chosen_on_are_left_out(tiny: Bundle, tmp_path: Path):
    records = np.concatenate([drawn(1000, 0, sureness=20), drawn(500, 1), drawn(500, 2)])
    split = np.repeat(["search", "test", "certification"], [1000, 500, 500])
    watch = Observation(with_records(tiny, tmp_path, records, split), minimum=1)
    watch(answer(FAST, records[1000:]), 0.01)
    report = the_report(watch)
    assert [found["psi"] for found in (report["shares"], *report["exits"].values())] == [0, 0, 0, 0]


# --- when it can be told ----------------------------------------------------------------------------------------------


def test_below_the_minimum_there_is_no_number(recorded):
    watch = Observation(recorded(drawn(1000, 0)))
    assert watch.drifted is None
    for _ in range(199):
        watch(answer(FULL, drawn(1, 1, sureness=50)), 0.01)
    assert the_report(watch)["exits"]["final"]["psi"] is None
    assert "expected at least 200" in the_report(watch)["exits"]["final"]["reason"]
    assert watch.drifted is None
    watch(answer(FULL, drawn(1, 1, sureness=50)), 0.01)
    assert the_report(watch)["exits"]["final"]["psi"] > 0.2
    assert the_report(watch)["exits"]["final"]["samples"] == 200
    assert watch.drifted is True


def test_an_exit_where_few_samples_leave_does_not_keep_the_others_from_a_verdict(recorded):
    watch = Observation(recorded(drawn(1000, 0)), minimum=100)
    watch(answer(LATE, np.repeat(np.float32([[0, 0.9, 0], [0, 0.1, 0.5]]), [300, 50], axis=0)), 0.01)
    report = the_report(watch)
    assert (report["exits"]["final"]["psi"], report["exits"]["7"]["psi"] > 0.2, watch.drifted) == (None, True, True)


def test_without_records_all_but_drift_works(tiny: Bundle):
    told: list[DriftReport] = []
    watch = Observation(tiny, on_drift=told.append)
    watch(answer(FAST, drawn(1000, 0)), 0.01)
    found = watch.as_dict()
    assert found["samples"] == 1000
    assert (watch.drifted, found["drift"]["drifted"], told) == (None, None, [])
    assert "no records" in found["drift"]["reason"]
    assert "no records" in the_report(watch)["shares"]["reason"]
    assert 'dyce_samples_total{configuration="fast",exit="3"}' in watch.prometheus()
    assert "dyce_drifted{" not in watch.prometheus()


def test_records_of_the_search_alone_are_none(tiny: Bundle, tmp_path: Path):
    watch = Observation(with_records(tiny, tmp_path, drawn(1000, 0), "search"))
    watch(answer(FAST, drawn(1000, 0)), 0.01)
    assert watch.drifted is None
    assert "certification and test" in watch.as_dict()["drift"]["reason"]


def test_a_head_that_was_not_recorded_is_named(tiny: Bundle, tmp_path: Path):
    arrays = {"scores": drawn(100, 0)[:, :2], "split": ["test"] * 100, "exit": ["3"], "head": [HEAD]}
    write_records(tmp_path / RECORDS, **arrays)
    watch = Observation(Bundle(tmp_path, tiny.manifest, tiny.configurations))
    watch(answer(FAST, drawn(1000, 0)), 0.01)
    assert the_report(watch)["shares"]["reason"] == "the records have no head linear at exit 7"
    assert watch.drifted is None
    watch(answer(Configuration("early", on(exit3=0.5)), drawn(1000, 0)), 0.01)
    assert watch.drifted is not None


def test_where_no_record_leaves_nothing_is_compared_but_the_shares(recorded):
    watch = Observation(recorded(np.full((100, 3), 0.25, np.float32)))
    watch(answer(FAST, np.full((300, 3), 0.75, np.float32)), 0.01)
    report = the_report(watch)
    assert report["exits"]["3"]["reason"] == "0 of the records' samples leave here: nothing to compare with"
    assert report["exits"]["final"]["reason"] == "the records' confidences are equal here: nothing to compare with"
    assert report["shares"]["psi"] > 1
    assert watch.drifted is True


def test_the_full_model_has_no_shares_to_compare(recorded):
    watch = Observation(recorded(drawn(1000, 0)))
    watch(answer(FULL, drawn(300, 1)), 0.01)
    assert the_report(watch)["shares"]["reason"] == "no exit is on"
    assert watch.drifted is False


def test_what_a_work_cap_sends_out_is_counted_but_is_no_drift(recorded):
    """It sends out half of all samples behind exit 3, which is off, and a quarter at exit 7, however unsure."""
    watch = Observation(recorded(drawn(2000, 0)))
    for number, part in enumerate(np.array_split(drawn(6000, 1), 60)):
        result = answer(LATE, part)
        if number < 40:
            result.exit[:50], result.exit[50:75] = 0, 1
            result.confidence[:75] = part[range(75), result.exit[:75]]
        watch(result, 0.01)
        assert not watch.drifted
        if number == 39:
            capped = the_report(watch)
            assert (capped["shares"]["psi"], capped["exits"]["7"]["samples"] > 200) == (None, True)
            assert watch.as_dict()["samples_per_exit"]["3"] == 2000
    report = the_report(watch)
    assert list(report["exits"]) == ["7", "final"]
    assert 1000 <= report["shares"]["samples"] <= 1050
    assert report["shares"]["psi"] < 0.05


def test_once_samples_are_sent_out_the_shares_are_not_told(recorded):
    watch = Observation(recorded(drawn(2000, 0)))
    watch(answer(LATE, drawn(1000, 1)), 0.01)
    assert the_report(watch)["shares"]["psi"] is not None
    as_sure_as_the_threshold = np.full(100, 0.5, np.float32)
    watch(structs.replace(left(LATE, *[1] * 100), confidence=as_sure_as_the_threshold), 0.01)
    assert "a work cap forced samples to exit" in the_report(watch)["shares"]["reason"]
    watch(answer(LATE, drawn(1100, 2)), 0.01)
    assert the_report(watch)["shares"]["samples"] == 1100


def test_a_capped_session_is_observed(tiny_bundle: Path, recorded):
    with load(tiny_bundle, threads=1) as session:
        session.use("accurate")
        early = session.plan(Configuration("early", on(exit3=0.0)))
        session.cap = lambda plan, count: structs.replace(early, configuration=plan.configuration)
        watch = Observation(recorded(drawn(1000, 0)))
        session.attach(watch)
        session(make_images(300))
    assert watch.as_dict()["samples_per_exit"] == {"3": 300, "7": 0, "final": 0}
    assert watch.drifted is None


def scrambled(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def no_zip(path: Path) -> None:
    path.write_text("these are no records")


def with_changes(**changes: object) -> Callable[[Path], None]:
    return lambda path: write_records(path, **{"scores": drawn(10, 0), "split": ["test"] * 10, **changes})


@pytest.mark.parametrize(
    "damage",
    [
        scrambled,
        no_zip,
        with_changes(split=None),
        with_changes(exit=["3"]),
        with_changes(split=["test"] * 9),
        with_changes(split=np.zeros(10, [("a", int)])),
        with_changes(split=np.arange(10)),
        with_changes(scores=drawn(10, 0)[:, :2]),
        with_changes(scores=drawn(10, 0)[:, 0]),
        with_changes(scores=drawn(10, 0) + 1),
        with_changes(scores=drawn(10, 0) * np.float32(np.nan)),
        with_changes(scores=drawn(10, 0).astype(np.float64)),
        with_changes(scores=drawn(10, 0).astype(object)),
    ],
)
def test_damaged_records_are_refused(recorded, damage):
    bundle = recorded(drawn(10, 0))
    damage(bundle.file(RECORDS))
    with pytest.raises(BundleError, match=r"records\.npz does not hold records"):
        Observation(bundle)


@pytest.mark.parametrize(
    "options",
    [
        {"buckets": []},
        {"buckets": [0.1, 0.1]},
        {"buckets": [0.2, 0.1]},
        {"buckets": [0.1, math.inf]},
        {"buckets": [math.nan]},
        {"threshold": 0},
        {"threshold": math.nan},
        {"minimum": 0},
        {"bins": 1},
    ],
)
def test_options_without_sense_are_refused(tiny: Bundle, options):
    with pytest.raises(UsageError, match="expected"):
        Observation(tiny, **options)


# --- under each configuration -----------------------------------------------------------------------------------------


def test_equal_names_that_do_different_things_are_kept_apart(recorded):
    watch = Observation(recorded(drawn(1000, 0)))
    first, second = Configuration("own", on(exit3=0.5)), Configuration("own", on(exit3=0.25, exit7=0.5))
    for part in np.array_split(drawn(1000, 1), 50):
        watch(answer(first, part), 0.01)
        watch(answer(second, part), 0.01)
    found = watch.as_dict()
    assert found["samples_per_configuration"] == {"own": 2000}
    reports = found["drift"]["configurations"]
    assert [sorted(report["configuration"]["exits"]) for report in reports] == [["3", "7"], ["3"]]
    assert [report["shares"]["samples"] for report in reports] == [1000, 1000]
    assert [report["drifted"] for report in reports] == [False, False]
    assert watch.prometheus().count('dyce_drifted{configuration="own"} 0') == 1


def test_different_names_that_do_the_same_count_as_one(recorded):
    """A governor names what it sets after the budget, and sets the same for many budgets."""
    watch = Observation(recorded(drawn(1000, 0)))
    same = [on(exit3=0.1, exit7=0.5), on(exit7=0.5, exit3=0.1), on(exit3=float(np.float32(0.1)), exit7=0.5)]
    for number, part in enumerate(np.array_split(drawn(1000, 1, sureness=9), 10)):
        watch(answer(Configuration(f"budget {number}", same[number % 3]), part), 0.01)
    (report,) = watch.as_dict()["drift"]["configurations"]
    assert (report["configuration"]["name"], report["shares"]["samples"]) == ("budget 0", 1000)
    assert watch.drifted is True


def test_only_the_last_used_configurations_are_kept(recorded):
    watch = Observation(recorded(drawn(100, 0)))
    own = [Configuration("own", on(exit3=(number + 1) / 256)) for number in range(200)]
    for number, configuration in enumerate(own):
        watch(left(configuration, *[0] * 100), 0.01)
        if number % 50 == 0:
            watch(left(FULL, *[2] * 100), 0.01)
    reports = watch.as_dict()["drift"]["configurations"]
    assert len(reports) == 64
    thresholds = [report["configuration"]["exits"]["3"]["threshold"] for report in reports[:49]]
    assert thresholds == [(number + 1) / 256 for number in reversed(range(151, 200))]
    (full,) = (report for report in reports if report["configuration"]["name"] == "full")
    assert full["exits"]["final"]["samples"] == 400


# --- being told -------------------------------------------------------------------------------------------------------


def feed(watch: Observation, count: int, seed: int, sureness: float = 2.0) -> Iterator[Stability]:
    """The stability of the final head's confidences after every hundred samples."""
    for part in np.array_split(drawn(count, seed, sureness), count // 100):
        watch(answer(FULL, part), 0.01)
        found = the_report(watch)["exits"]["final"]
        yield Stability(**found)


def test_drift_is_told_when_it_begins_and_again_only_after_it_has_ended(recorded, told):
    watch = Observation(recorded(drawn(1000, 0)), on_drift=told.append)
    list(feed(watch, 2000, 1))
    assert told == []
    list(feed(watch, 10_000, 2, sureness=6))
    assert (len(told), watch.drifted) == (1, True)
    assert told[0].configuration == FULL
    assert told[0].drifted is True
    assert told[0].exits["final"].psi > told[0].exits["final"].limit
    list(feed(watch, 60_000, 3))
    assert (len(told), watch.drifted) == (1, False), "what is long ago is forgotten"
    list(feed(watch, 20_000, 4, sureness=6))
    assert (len(told), watch.drifted) == (2, True)


def test_an_index_at_its_limit_does_not_come_and_go(recorded):
    watch = Observation(recorded(drawn(1000, 0)))
    between = {False: 0, True: 0}
    for sureness, count in ((2.0, 2000), (6.0, 5000), (2.0, 60_000)):
        for found in feed(watch, count, int(sureness), sureness):
            if found.psi is not None:
                assert watch.drifted or found.psi <= found.limit
                assert not watch.drifted or found.psi > found.limit / 2
                between[watch.drifted] += found.limit / 2 < found.psi <= found.limit
    assert all(between.values())


def test_drift_under_one_configuration_says_nothing_of_another(recorded, told):
    watch = Observation(recorded(drawn(1000, 0)), on_drift=told.append)
    watch(answer(FAST, drawn(1000, 1, sureness=9)), 0.01)
    assert watch.drifted is True
    watch(answer(FULL, drawn(1000, 1)), 0.01)
    assert watch.drifted is False
    watch(answer(LATE, drawn(1000, 1, sureness=9)), 0.01)
    assert [report.configuration for report in told] == [FAST, LATE]


def test_whoever_is_told_may_ask_from_any_thread(recorded):
    asked = []
    with ThreadPoolExecutor(1) as other_thread:

        def ask(report: DriftReport) -> None:
            for question in (lambda: watch.as_dict()["drift"]["drifted"], watch.prometheus):
                asked.append(other_thread.submit(question).result(timeout=20))
            watch(left(FULL, 2), 0.01)

        watch = Observation(recorded(drawn(1000, 0)), on_drift=ask)
        watch(answer(FULL, drawn(1000, 1, sureness=9)), 0.01)
    assert asked[0] is True
    assert 'dyce_drifted{configuration="full"} 1' in asked[1]


def test_what_on_drift_raises_is_logged_and_the_call_still_answers(tiny_bundle: Path, recorded, caplog):
    def fail(report: DriftReport) -> None:
        raise OSError("no network")

    with load(tiny_bundle, threads=1) as session:
        session.use("fast")
        session.attach(Observation(recorded(drawn(1000, 0)), on_drift=fail))
        assert session(np.clip(make_images(400) * 64, -10, 10)).label.shape == (400,)
    assert "no network" in caplog.text


def test_a_session_drifts_when_its_pictures_grow_brighter(tiny_bundle: Path, recorded, told):
    records = all_heads(make_images(2000, seed=7))[1]
    with load(tiny_bundle, threads=1) as session:
        watch = Observation(recorded(records), on_drift=told.append)
        session.attach(watch)
        for name in NAMED:
            session.use(name)
            for seed in range(4):
                session(make_images(300, seed))
            assert watch.drifted is False, name
        assert told == []
        for seed in range(8):
            session(np.clip(make_images(600, seed) * 4, -10, 10))
    assert [report.configuration.name for report in told] == ["fast"]
