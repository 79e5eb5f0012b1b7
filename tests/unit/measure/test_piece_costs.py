"""No test here measures anything: the pieces turn a clock and draw from a meter."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from dyce_calibration.records import Records
from dyce_calibration.search.costs import costs_of
from dyce_calibration.search.problem import make_problem
from dyce_runtime import Configuration, Session
from dyce_runtime.errors import DataError
from dyce_runtime.inputs.preprocessing import preprocess
from dyce_runtime.measure.bench import benchmark
from dyce_runtime.measure.energy import Meter
from dyce_runtime.measure.piece_costs import PieceCosts, measure_energies, measure_times
from tests.bundles import HEAD, Clock, Spy, all_heads, make_images, near_threshold, on
from tests.unit.measure.pictures import make_data

SEGMENTS = {"segment_00": 0.2, "segment_01": 0.3, "segment_02": 0.4}
SECONDS = {**SEGMENTS, "exit_03_linear": 0.05, "exit_07_linear": 0.06, "full": 0.8, "span_00_01": 0.5}
BATCHES = [make_images(2, seed) for seed in range(3)]


class FakeMeter(Meter):
    """Counts what the pieces draw, and so many watts all the time."""

    source = "fake"

    def __init__(self, clock: Clock, spy: Spy, idle: float, joules: dict[str, float]) -> None:
        self._clock, self._idle, self._pieces, self._joules = clock, idle, joules, 0.0
        spy.before = self._run

    def _run(self, piece: str) -> None:
        self._clock.run(piece)
        self._joules += self._pieces.get(piece, 0.0)

    def joules(self) -> float:
        return self._joules + self._idle * self._clock.now


def test_every_piece_gets_its_own_milliseconds(clock: Clock, spied: Session):
    clock |= SECONDS
    found = measure_times(spied, BATCHES)
    assert found.segments == pytest.approx({"3": 200, "7": 300, "final": 400})
    assert found.heads == pytest.approx({("3", HEAD): 50, ("7", HEAD): 60})
    assert found.uncut == pytest.approx(800)
    assert found.spans == pytest.approx({("image", "7"): 500})
    assert spied.configuration.name == "balanced"


def test_every_piece_gets_its_own_joules_whatever_the_machine_draws_when_idle(clock: Clock, spy: Spy, spied: Session):
    clock |= SECONDS
    drawn = {"segment_00": 3.0, "segment_01": 2.0, "segment_02": 1.5, "exit_03_linear": 0.25, "full": 6.0}
    found = measure_energies(spied, BATCHES, FakeMeter(clock, spy, idle=40.0, joules=drawn))
    assert found.segments == pytest.approx({"3": 3.0, "7": 2.0, "final": 1.5})
    assert found.heads == pytest.approx({("3", HEAD): 0.25, ("7", HEAD): 0.0}, abs=1e-9)
    assert found.uncut == pytest.approx(6.0)


def test_energy_takes_many_calls_and_few_batches(clock: Clock, spy: Spy, spied: Session):
    clock |= dict.fromkeys(SECONDS, 0.01)
    measure_energies(spied, (images for images in BATCHES * 9), FakeMeter(clock, spy, 5.0, {}))
    # Half a second on each of three batches, and the calls that warm up.
    assert [piece for piece, _ in spy.calls].count("full") in range(3 * 50, 3 * 50 + 10)


def test_less_than_the_idle_machine_draws_counts_as_nothing_and_is_said(clock: Clock, spy: Spy, spied, caplog):
    clock |= SECONDS
    with caplog.at_level(logging.WARNING, "dyce_runtime"):
        found = measure_energies(spied, BATCHES, FakeMeter(clock, spy, 1.0, {"segment_01": -2.0, "full": 6.0}))
    assert found.segments["7"] == 0
    assert "7: no energy above that of the idle machine was seen" in caplog.text


def test_a_meter_that_stands_still_gives_no_cost_table():
    nothing = PieceCosts({"3": 0.0, "7": 0.0, "final": 0.0}, {("3", HEAD): 0.0}, 0.0, {})
    with pytest.raises(DataError, match=r"the full model costs 0\.0 joules"):
        costs_of(nothing, "joules", "", {})


@pytest.mark.parametrize("exits", [on(exit3=0.5, exit7=0.5), on(exit3=0.7), on(exit7=0.6), {}])
def test_what_a_search_counts_on_is_what_the_benchmark_finds(clock: Clock, spied: Session, exits):
    """Costs of pieces and records of heads on one side, whole calls on the other."""
    clock |= SECONDS
    data = make_data(60)
    configuration = Configuration("mine", exits)
    images = preprocess(data.images(range(60)), spied.manifest.preprocessing)
    assert not near_threshold(images, configuration)
    costs = costs_of(measure_times(spied, BATCHES), "ms", "", {})
    logits, confidences = all_heads(images)
    heads, split = (("3", HEAD), ("7", HEAD)), np.full(60, "search")
    records = Records.of_single_label(heads, logits.argmax(axis=2), confidences, data.labels, data.hashes, split)
    problem = make_problem(records, costs)
    predicted = problem.evaluate(problem.setting(exits))
    (found,) = benchmark(spied, data, [configuration])["configurations"]
    assert found["mean_ms"] == pytest.approx(predicted.cost * costs.full)
    assert found["accuracy"] == predicted.accuracy
