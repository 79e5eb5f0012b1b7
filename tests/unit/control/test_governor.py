from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dyce_runtime.execution.session
from dyce_runtime import Configuration, Session, load
from dyce_runtime.bundle.configuration import Configurations, Entry, Figures
from dyce_runtime.control.governor import LatencyGovernor
from dyce_runtime.errors import ConfigurationError, UsageError
from dyce_runtime.execution.plan import LeaveAt
from dyce_runtime.execution.routing import Result
from dyce_runtime.targets import registry
from dyce_runtime.targets.registry import find
from tests.bundles import CLASSES, NAMED, expected, make_images

IMAGE = make_images(1)
# Search figures: accuracy and cost. A call of the full model takes 10 ms where a test says nothing else.
FIGURES = {"fast": (0.7, 0.2), "balanced": (0.8, 0.4), "accurate": (0.85, 0.6), "full": (0.9, 1.0)}
COSTS = {name: cost for name, (_, cost) in FIGURES.items()}
# Calls after which a governor with the options below has seen enough for a step up.
BEAT = 20


class Machine:
    """A target that computes nothing: a call takes as long as a test says, on a clock of its own.

    Attributes:
        now: seconds since the start.
        takes: seconds of the next calls.
        readings: how often a call looked at the clock.
        during: runs in the middle of a call.
    """

    name, spans, engines, rows, max_rows = "machine", False, False, 1, 1 << 16

    def __init__(self) -> None:
        self.now, self.takes, self.readings = 0.0, 0.0, 0
        self.during: Callable[[], object] = lambda: None

    def look(self) -> float:
        self.readings += 1
        return self.now

    def best_batch(self, spec, macs) -> int:
        return 64

    def open(self, pieces, tensors, spec) -> Machine:
        return self

    def context(self, rows: int) -> Machine:
        return self

    def set_input(self, name, array) -> None:
        takes, during, self.during = self.takes, self.during, lambda: None
        during()
        self.now += takes

    def run_until_exit(self, steps):
        return next(step for step in steps if isinstance(step, LeaveAt)), np.ones(1, np.float32)

    def read(self, *names):
        return [np.zeros((1, CLASSES), np.float32), np.zeros(1, np.int64)]

    def close(self) -> None: ...

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None: ...


class Simulation:
    """A session on a machine, and a governor."""

    def __init__(self, session: Session, machine: Machine) -> None:
        self.session, self.machine = session, machine
        self.costs = dict(COSTS)

    def govern(self, p95_ms: float, **options) -> LatencyGovernor:
        options = {"window": 4 * BEAT, "dwell_s": 1e-9, "clock": lambda: self.machine.now, **options}
        return LatencyGovernor(self.session, p95_ms, **options)

    def call(self, calls: int, load: float = 1.0, noise: float = 0.0, seed: int = 0) -> list[str]:
        """The names of the configurations that answered; ``noise`` is the deviation of the latency's logarithm."""
        factors = np.exp(np.random.default_rng(seed).normal(0, noise, calls)) if noise else np.ones(calls)
        names, self.seconds = [], []
        for factor in factors:
            self.machine.takes = 0.01 * load * factor * self.costs[self.session.configuration.name]
            names.append(self.session(IMAGE).configuration.name)
            self.seconds.append(self.machine.takes)
        return names


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """The target of every session of this module, and the clock that its calls are timed by."""
    machine = Machine()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "find", lambda name=None: machine)
        patch.setattr(dyce_runtime.execution.session, "time", SimpleNamespace(perf_counter=machine.look))
        yield machine


@pytest.fixture(scope="module")
def simulation(tiny_bundle: Path, machine: Machine) -> Iterator[Simulation]:
    with load(tiny_bundle) as session:
        session.bundle.configurations = priced(FIGURES)
        yield Simulation(session, machine)


@pytest.fixture(autouse=True)
def _as_it_was(simulation: Simulation) -> Iterator[None]:
    simulation.machine.now = 0.0
    yield
    simulation.costs = dict(COSTS)
    simulation.session.bundle.configurations = priced(FIGURES)


def figures(accuracy: float, cost: float, shares: tuple[float, ...] = ()) -> Figures:
    return Figures(accuracy, 0.0, cost, 100, shares)


def priced(known: dict[str, tuple[float, float]]) -> Configurations:
    return Configurations(named={name: Entry(NAMED[name], search=figures(*known[name])) for name in known})


def switches(names: list[str]) -> int:
    return sum(a != b for a, b in pairwise(names))


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
