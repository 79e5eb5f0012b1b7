"""Which configurations the governor may choose, what it refuses, and to whom the knob belongs."""

from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dyce_runtime.execution.session
from dyce_runtime import Configuration, load
from dyce_runtime.bundle.configuration import Configurations, Entry
from dyce_runtime.control.governor import LatencyGovernor
from dyce_runtime.errors import ConfigurationError, UsageError
from dyce_runtime.execution.routing import Result
from dyce_runtime.targets import registry
from dyce_runtime.targets.registry import find
from tests.bundles import NAMED, expected, make_images
from tests.unit.control.simulated import BEAT, FIGURES, IMAGE, Simulation, figures, priced

pytestmark = pytest.mark.usefixtures("as_it_was")


# --- the floor -------------------------------------------------------------------------------------------------------


@given(st.floats(0.01, 1000), st.sampled_from([0.7, 0.75, 0.8, 0.85, 0.86, 0.9]))
def test_nothing_below_the_floor_ever_answers(simulation, load, floor):
    with simulation.govern(5, min_accuracy=floor):
        assert all(FIGURES[name][0] >= floor for name in simulation.call(200, load))


def test_a_limit_that_cannot_be_met_is_said_once(simulation, caplog):
    with simulation.govern(5, min_accuracy=0.8) as governor:
        for _ in range(3):
            simulation.call(500, load=3)
            assert governor.state["configuration"] == "balanced"
            assert governor.state["missed"]
            simulation.call(1000, load=0.5)
            assert not governor.state["missed"]
    assert [record.name for record in caplog.records] == ["dyce_runtime"]
    assert "take up to 12 ms" in caplog.text
    assert "the limit is 5 ms" in caplog.text


@pytest.mark.parametrize("floor", [0.91, 90, math.nan])
def test_a_floor_that_nothing_reaches_is_refused(simulation, floor):
    with pytest.raises(ConfigurationError, match=r"the most accurate configuration of this bundle has 0\.9000"):
        simulation.govern(5, min_accuracy=floor)
    simulation.session.use("fast")


@pytest.mark.parametrize(
    ("p95_ms", "options"),
    [
        *((limit, {}) for limit in (0, -1, math.nan, math.inf, None, "5", True)),
        *(
            (5, options)
            for options in ({"batch": 0}, {"batch": None}, {"window": 79}, {"dwell_s": 0}, {"dwell_s": "1"})
        ),
    ],
)
def test_numbers_that_make_no_sense_are_refused(simulation, p95_ms, options):
    with pytest.raises(UsageError, match="expected"):
        simulation.govern(p95_ms, **options)
    simulation.session.use("fast")


# --- what it walks ---------------------------------------------------------------------------------------------------


def visited(simulation: Simulation, **options) -> list[str]:
    """Every configuration that it may choose: from the cheapest, which an overload leads to, it climbs one by one."""
    with simulation.govern(1000, **options):
        for simulation.machine.takes, calls in ((1e6, 20), (1e-3, 10 * BEAT)):
            names = [simulation.session(IMAGE).configuration.name for _ in range(calls)]
    return list(dict.fromkeys(names))


def test_it_walks_the_front_and_the_named_configurations(simulation):
    simulation.session.bundle.configurations = Configurations(
        named={name: Entry(NAMED[name], search=figures(*FIGURES[name])) for name in ("full", "balanced")},
        front=tuple(Entry(NAMED[name], search=figures(*FIGURES[name])) for name in ("fast", "balanced", "accurate")),
    )
    assert visited(simulation, min_accuracy=None) == ["front 0.200", "balanced", "front 0.600", "full"]
    assert visited(simulation) == ["balanced", "front 0.600", "full"], "not below what has a name"


def test_without_a_word_it_does_not_go_below_fast(simulation):
    known = {**FIGURES, "chosen": (0.5, 0.1)}
    named = {name: Entry(NAMED.get(name, NAMED["fast"]), search=figures(*known[name])) for name in known}
    front = (Entry(NAMED["fast"], search=figures(0.3, 0.05)),)
    simulation.session.bundle.configurations = Configurations(named=named, front=front)
    simulation.costs |= {"chosen": 0.1, "front 0.050": 0.05}
    assert visited(simulation)[0] == "fast"
    for floor, cheapest in ((None, "front 0.050"), (0, "front 0.050"), ("chosen", "chosen"), ("balanced", "balanced")):
        assert visited(simulation, min_accuracy=floor)[0] == cheapest
    with pytest.raises(ConfigurationError, match="min_accuracy is 'slow'; the configurations that were searched are"):
        simulation.govern(5, min_accuracy="slow")


def test_what_was_not_searched_is_left_out(simulation):
    known = priced({"fast": (0.7, 0.2), "balanced": (0.8, 0.4)}).named
    simulation.session.bundle.configurations = Configurations(named={"full": Entry({}), **known})
    assert visited(simulation) == ["fast", "balanced"]


def test_what_costs_more_for_less_accuracy_is_left_out(simulation):
    simulation.session.bundle.configurations = priced({**FIGURES, "full": (0.84, 1.0)})
    assert visited(simulation) == ["fast", "balanced", "accurate"]


def test_of_two_that_cost_almost_the_same_only_the_more_accurate_stays(simulation):
    simulation.session.bundle.configurations = priced({**FIGURES, "balanced": (0.84, 0.57)})
    assert visited(simulation) == ["fast", "accurate", "full"]


def test_for_calls_of_one_input_the_hard_ones_decide(simulation):
    """Of 'fast' 8 % of the inputs go all the way: its 95 % quantile is no better than that of 'balanced'."""
    entries = {
        "fast": figures(0.7, 0.3, (0.9, 0.02, 0.08)),
        "balanced": figures(0.8, 0.5, (0.3, 0.4, 0.3)),
        "accurate": figures(0.85, 0.7, (0.0, 0.97, 0.03)),
        "full": figures(0.9, 1.0, (0.0, 0.0, 1.0)),
    }
    simulation.session.bundle.configurations = Configurations(
        named={name: Entry(NAMED[name], search=found) for name, found in entries.items()}
    )
    assert visited(simulation) == ["accurate", "full"]
    assert visited(simulation, batch=10_000) == ["fast", "balanced", "accurate", "full"]


def test_a_bundle_without_a_search_is_refused(simulation):
    simulation.session.bundle.configurations = Configurations(named={"full": Entry({})})
    with pytest.raises(ConfigurationError, match="no searched configurations"):
        simulation.govern(5)
    simulation.session.use("full")


# --- the knob --------------------------------------------------------------------------------------------------------


def test_it_owns_the_knob_until_it_is_closed(simulation):
    session = simulation.session
    session.use("fast")
    with simulation.govern(5) as governor:
        assert session.configuration.name == "full"
        simulation.call(100)
        with pytest.raises(ConfigurationError, match="LatencyGovernor controls the active configuration"):
            session.use("fast")
        with pytest.raises(ConfigurationError, match="LatencyGovernor controls the active configuration"):
            simulation.govern(5)
    assert session.configuration.name == "balanced"
    assert set(simulation.call(100, load=9)) == {"balanced"}
    session.use("fast")
    governor.close()
    assert session.configuration.name == "fast"


def test_a_call_that_ends_while_it_is_closed_turns_nothing(simulation):
    session, governors = simulation.session, []

    def meanwhile(result: Result, seconds: float) -> None:
        if seconds > 0.5:
            governors[0].close()
            session.use("accurate")

    session.attach(meanwhile)
    governors.append(simulation.govern(5))
    simulation.call(3)
    simulation.machine.takes = 1.0
    session(IMAGE)
    session.detach(meanwhile)
    assert session.configuration.name == "accurate"


def test_calls_are_timed_only_while_it_lives(simulation):
    with simulation.govern(5):
        simulation.call(1)
        readings = simulation.machine.readings
        assert readings > 0
    simulation.call(1)
    assert simulation.machine.readings == readings


def test_several_threads_may_call_a_session_that_is_governed(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    """With a real engine and clock: whatever it decides, answers are right and the knob comes back."""
    monkeypatch.setattr(registry, "find", find)
    monkeypatch.setattr(dyce_runtime.execution.session, "time", time)
    batches = [make_images(3, seed) for seed in range(400)]
    with load(tiny_bundle, threads=1) as session:
        session.bundle.configurations = priced(FIGURES)
        with LatencyGovernor(session, 1e-3, window=80, dwell_s=1e-6) as governor, ThreadPoolExecutor(4) as pool:
            for images, result in zip(batches, pool.map(session, batches), strict=True):
                np.testing.assert_array_equal(result.exit, expected(images, result.configuration).exit)
            assert governor.state["configuration"] == "fast", "a microsecond is not enough for anything"
            assert governor.state["missed"]
        session.use(Configuration("mine"))
