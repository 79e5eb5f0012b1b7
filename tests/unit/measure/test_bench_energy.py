"""Joules beside milliseconds: the pieces turn a clock and draw from a meter."""

from __future__ import annotations

import logging

import pytest

from dyce_runtime import Configuration, Session
from dyce_runtime.errors import TargetError
from dyce_runtime.measure.bench import benchmark
from tests.bundles import Clock, Spy, on
from tests.unit.measure.pictures import make_data
from tests.unit.measure.test_piece_costs import FakeMeter

SECONDS = {"full": 0.02, "segment_00": 0.01, "segment_01": 0.01, "segment_02": 0.01}
EARLY = Configuration("early", on(exit3=0.0))


@pytest.fixture
def meter(clock: Clock, spy: Spy) -> FakeMeter:
    clock |= SECONDS
    return FakeMeter(clock, spy, idle=40.0, joules={"full": 6.0, "segment_00": 2.0, "exit_03_linear": 0.5})


@pytest.mark.parametrize("batch", [1, 8])
def test_energy_is_that_of_a_sample_above_the_idle_machine(meter: FakeMeter, spied: Session, batch: int):
    document = benchmark(spied, make_data(40), [EARLY], batch=batch, find_meter=lambda: meter)
    (entry,) = document["configurations"]
    assert document["uncut"]["joules_per_sample"] == pytest.approx(6.0 / batch)
    assert entry["joules_per_sample"] == pytest.approx(2.5 / batch)
    assert document["meter"] == "fake"


def test_every_configuration_has_its_energy(meter: FakeMeter, spied: Session):
    found = benchmark(spied, make_data(40), ["full", EARLY, "full"], find_meter=lambda: meter)["configurations"]
    assert [entry["joules_per_sample"] for entry in found] == pytest.approx([6.0, 2.5, 6.0])


def test_every_size_of_a_batch_has_its_energy(meter: FakeMeter, spied: Session):
    document = benchmark(spied, make_data(40), [EARLY], batch=[1, 4], find_meter=lambda: meter)
    assert [part["uncut"]["joules_per_sample"] for part in document["batches"]] == pytest.approx([6.0, 1.5])


def test_energy_is_that_of_the_exits_that_the_samples_take(meter: FakeMeter, spied: Session, clock: Clock, spy: Spy):
    """Not only of the first few: with some that go on, more is drawn than for the shortest way."""
    spy.before = FakeMeter(clock, spy, 0.0, {})._run
    fast = benchmark(spied, make_data(40), ["fast"])["configurations"][0]
    shares = list(fast["share_per_exit"].values())
    assert 0 < shares[-1] < 1
    own = FakeMeter(clock, spy, idle=5.0, joules={"segment_00": 1.0, "segment_01": 1.0, "segment_02": 1.0})
    (entry,) = benchmark(spied, make_data(40), ["fast"], find_meter=lambda: own)["configurations"]
    assert entry["joules_per_sample"] == pytest.approx(shares[0] + 2 * shares[1] + 3 * shares[2])


def test_it_is_measured_behind_all_the_timing(meter: FakeMeter, spied: Session, spy: Spy):
    ran: list[int] = []

    def find() -> FakeMeter:
        ran.append(len(spy.calls))
        return meter

    benchmark(spied, make_data(4), [], chain=False, batch=[1, 2], find_meter=find)
    assert ran == [(4 + 5) + (2 + 5)]


def test_without_a_meter_there_is_no_energy_and_no_word(clock: Clock, spied: Session, caplog):
    def find() -> FakeMeter:
        raise TargetError("no energy meter was found")

    clock |= SECONDS
    with caplog.at_level(logging.INFO, "dyce_runtime"):
        document = benchmark(spied, make_data(4), [EARLY], find_meter=find)
    assert document["meter"] is document["uncut"]["joules_per_sample"] is None
    assert document["configurations"][0]["joules_per_sample"] is None
    assert caplog.text == ""


def test_a_meter_that_fails_leaves_the_times_and_is_named(meter: FakeMeter, spied: Session, caplog, monkeypatch):
    left = iter(range(6))

    def joules() -> float:
        if next(left, None) is None:
            raise TargetError("energy_uj cannot be read: gone")
        return 0.0

    monkeypatch.setattr(meter, "joules", joules)
    document = benchmark(spied, make_data(4), [EARLY], find_meter=lambda: meter)
    assert document["meter"] is document["uncut"]["joules_per_sample"] is None
    assert document["uncut"]["mean_ms"] == pytest.approx(20)
    assert "no energy was measured: energy_uj cannot be read: gone" in caplog.text
    assert spied.configuration.name == "balanced"
