"""What a session does, counted."""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType

import pytest
from hypothesis import given
from hypothesis import strategies as st

import dyce_runtime.monitoring.drift
import dyce_runtime.monitoring.observation
from dyce_runtime import Bundle, Configuration, load
from dyce_runtime.monitoring.observation import Observation
from tests.bundles import make_images, on
from tests.unit.monitoring.observed import (
    EXITS,
    FAST,
    LATE,
    drawn,
    left,
    seconds,
)

calls = st.lists(
    st.tuples(
        st.sampled_from([FAST, Configuration("own", on(exit3=0.5, exit7=0.7))]),
        st.lists(st.integers(0, 2), min_size=1, max_size=5),
        seconds,
    )
)


@given(calls)
def test_every_call_and_sample_is_counted(tiny: Bundle, calls):
    watch = Observation(tiny)
    for configuration, exits, duration in calls:
        watch(left(configuration, *exits), duration)
    found = watch.as_dict()
    assert found["calls"] == len(calls)
    assert found["samples"] == sum(len(exits) for _, exits, _ in calls)
    at = Counter(exit for _, exits, _ in calls for exit in exits)
    assert found["samples_per_exit"] == {id: at[index] for index, id in enumerate(EXITS)}
    by = Counter(configuration.name for configuration, exits, _ in calls for _ in exits)
    assert found["samples_per_configuration"] == by


@given(st.lists(seconds), st.lists(seconds, min_size=1, unique=True).map(sorted))
def test_a_latency_bucket_holds_the_calls_up_to_its_boundary(tiny: Bundle, durations, boundaries):
    watch = Observation(tiny, buckets=boundaries)
    for duration in durations:
        watch(left(FAST, 0), duration)
    found = watch.as_dict()["latency_seconds"]
    for boundary, count in found["buckets"].items():
        assert count == sum(duration <= float(boundary) for duration in durations)
    assert list(map(float, found["buckets"])) == [*boundaries, math.inf]
    assert (found["sum"], found["count"]) == (pytest.approx(math.fsum(durations)), len(durations))


def test_counts_are_exact_when_threads_switch_between_any_two_instructions(recorded):
    watch = Observation(recorded(drawn(100, 0)))
    results = [left(FAST, 0), left(FAST, 1, 2), left(LATE, 1)]

    def switch(frame: FrameType, event: str, argument: object):
        if frame.f_code.co_filename not in (
            dyce_runtime.monitoring.observation.__file__,
            dyce_runtime.monitoring.drift.__file__,
        ):
            return None
        frame.f_trace_opcodes = True
        time.sleep(0)
        return switch

    def work(number: int) -> None:
        sys.settrace(switch)
        try:
            for turn in range(15):
                watch(results[turn % 3], 2.0**-9)
        finally:
            sys.settrace(None)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    found = watch.as_dict()
    assert (found["calls"], found["latency_seconds"]["sum"]) == (120, 120 * 2.0**-9)
    assert found["samples_per_exit"] == {"3": 40, "7": 80, "final": 40}
    assert found["samples_per_configuration"] == {"fast": 120, "late": 40}
    for result in (left(FAST, *[0] * 100), left(LATE, *[1] * 100)):
        watch(result, 0.01)
    seen = [report["shares"]["samples"] for report in watch.as_dict()["drift"]["configurations"]]
    assert seen == [140, 220]


def test_an_application_may_make_up_names_without_end(tiny: Bundle):
    watch = Observation(tiny)
    for number in range(1000):
        watch(left(Configuration(f"own {number}", FAST.exits), 0, 1), 0.01)
    found = watch.as_dict()["samples_per_configuration"]
    assert len(found) <= 65
    assert found["own 0"] == 2
    assert sum(found.values()) == 2000
    assert len(watch.as_dict()["drift"]["configurations"]) == 1


def test_a_session_is_observed_until_it_is_detached(tiny_bundle: Path):
    with load(tiny_bundle, threads=1) as session:
        watch = Observation(session)
        session.attach(watch)
        session.use("fast")
        exits = [*session(make_images(40)).exit, *session(make_images(1)).exit]
        session.detach(watch)
        session(make_images(5))
    found = watch.as_dict()
    assert found["calls"] == 2
    assert found["samples_per_exit"] == {id: exits.count(index) for index, id in enumerate(EXITS)}
    assert 0 < found["latency_seconds"]["sum"] < 60
