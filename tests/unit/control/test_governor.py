"""What the governor does with the latencies it sees: at a load that stays, and at one that changes."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.control.simulated import BEAT, COSTS, IMAGE, switches

pytestmark = pytest.mark.usefixtures("as_it_was")


# --- constant load ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("p95_ms", "name"),
    [(20, "full"), (10.1, "full"), (9, "accurate"), (6.9, "accurate"), (5.9, "balanced"), (2.1, "fast")],
)
def test_constant_load_ends_at_the_most_accurate_configuration_under_the_limit(simulation, p95_ms, name):
    with simulation.govern(p95_ms) as governor:
        names = simulation.call(2000)
        assert set(names[100:]) == {name}
        assert governor.state["switches"] == (name != "full")
        assert governor.state["p95_ms"] == pytest.approx(10 * COSTS[name])
        assert not governor.state["missed"]


@settings(max_examples=40)
@given(st.floats(0.1, 10), st.floats(1, 30))
def test_it_converges_under_any_load(simulation, load, p95_ms):
    with simulation.govern(p95_ms):
        simulation.call(1000, load)
        chosen = set(simulation.call(1000, load))
    assert len(chosen) == 1
    latency = {name: 10 * load * cost for name, cost in COSTS.items()}
    (name,) = chosen
    assert latency[name] <= p95_ms * (1 + 1e-9) or name == "fast"
    above = [other for other in COSTS if COSTS[other] > COSTS[name]]
    assert not above or latency[above[0]] > 0.94 * p95_ms, "there is room for a more accurate one"


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 0.35), st.floats(3, 25))
def test_noise_does_not_make_it_oscillate(simulation, seed, noise, p95_ms):
    with simulation.govern(p95_ms):
        names = simulation.call(6000, noise=noise, seed=seed)
    # Whatever it finds out by trying is tried again after 8, 16, 32, ... beats; between two tries it may go deeper.
    assert switches(names) <= 24
    assert switches(names[3000:]) <= 12
    slow = np.mean(np.array(simulation.seconds[500:]) > p95_ms / 1e3)
    assert slow <= 0.06 or names.count("fast") > 3000


@pytest.mark.parametrize("load", [0.3, 0.55, 0.8])
def test_noise_within_the_hysteresis_changes_nothing(simulation, load):
    with simulation.govern(10):
        assert switches(simulation.call(5000, load, noise=0.08)) == 0


def test_what_was_tried_in_vain_is_tried_less_and_less_often(simulation):
    """Full takes longer than the search said: from below it always looks as if there were room."""
    simulation.costs["full"] = 3.0
    with simulation.govern(13) as governor:
        names = simulation.call(20_000)
        starts = [i for i, (a, b) in enumerate(pairwise(names)) if (a, b) == ("accurate", "full")]
        assert 3 <= len(starts) <= math.log2(20_000 / BEAT)
        assert all(later > 1.5 * sooner for sooner, later in pairwise(np.diff(starts)))
        # Less load makes it worth another look, at once.
        assert "full" in simulation.call(5 * BEAT, load=0.4)
        assert governor.state["configuration"] == "full"


# --- steps in load ---------------------------------------------------------------------------------------------------


def test_load_that_doubles_and_comes_back(simulation):
    with simulation.govern(12) as governor:
        assert set(simulation.call(1000)) == {"full"}
        names = simulation.call(1000, load=2)
        assert set(names[10:]) == {"balanced"}, "0.4 of 20 ms is the most that fits"
        assert sum(seconds > 0.012 for seconds in simulation.seconds) <= 10
        names = simulation.call(1000)
        assert set(names[4 * BEAT :]) == {"full"}
        assert governor.state["switches"] == 3


@settings(max_examples=40)
@given(st.lists(st.floats(0.2, 20), min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_it_recovers_from_whatever_there_was(simulation, loads, seed):
    with simulation.govern(12):
        for load in loads:
            simulation.call(300, load, noise=0.1, seed=seed)
        simulation.call(50 * BEAT, load=0.5, noise=0.1, seed=seed)
        assert set(simulation.call(500, load=0.5, noise=0.1, seed=seed)) == {"full"}


def test_a_step_down_goes_as_far_as_the_latency_demands(simulation):
    with simulation.govern(12):
        names = simulation.call(50, load=5)
        assert switches(names) == 1
        assert names[0] == "full"
        assert names[-1] == "fast"


def test_a_few_slow_calls_are_chance(simulation):
    with simulation.govern(12):
        simulation.call(1000)
        for _ in range(20):
            assert set(simulation.call(3, load=9)) == {"full"}
            simulation.call(4 * BEAT)
        assert "full" not in simulation.call(30, load=9)[20:]


@pytest.mark.parametrize(("every", "name"), [(17, "full"), (16, "accurate")])
def test_a_little_more_than_5_percent_slow_calls_may_be_chance_too(simulation, every, name):
    """Of 400 calls 20 is usual, and a standard deviation more up to 24."""
    with simulation.govern(12, window=400):
        for _ in range(1200 // every):
            names = simulation.call(every - 1) + simulation.call(1, load=1.3)
        assert names[-1] == name


def test_a_step_up_takes_a_while(simulation):
    with simulation.govern(12, dwell_s=0.7, window=400):
        simulation.call(100, load=2)
        simulation.call(1000, load=2)
        assert simulation.session.configuration.name == "balanced"
        quick = simulation.call(6 * 100, load=0.25)
        assert quick[-1] == "balanced", "0.6 s are not enough"
        assert simulation.call(150, load=0.25)[-1] == "accurate"
        slow = simulation.call(99, load=1)
        assert set(slow) == {"accurate"}, "0.59 s and 99 calls are not enough"


def test_calls_that_began_before_a_step_do_not_count(simulation):
    with simulation.govern(12) as governor:
        simulation.machine.takes = 0.05

        def meanwhile() -> None:
            simulation.call(4, load=2)
            simulation.machine.takes = 0.001

        simulation.machine.during = meanwhile
        assert simulation.session(IMAGE).configuration.name == "full"
        assert governor.state["configuration"] == "balanced"
        assert governor.state["calls"] == 0
        assert governor.state["p95_ms"] is None
