"""When samples are moved together: by what moving takes and what it saves, on a clock that the pieces turn."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dyce_runtime import Session
from dyce_runtime.measure import batching
from dyce_runtime.measure.batching import measure_best_batch, measure_compaction
from tests.bundles import Clock, SpiedContext, Spy, make_images


@pytest.mark.parametrize(
    ("per_call", "cached", "expected"),
    [
        (0.0, 1, 1),
        (0.1, 20, 20),
        (0.1, 8, 8),  # more than 8 samples leave the caches
        (0.1, 3, 2),
    ],
)
def test_the_best_batch_weighs_calls_against_caches(
    spied: Session, spy: Spy, monkeypatch: pytest.MonkeyPatch, per_call: float, cached: int, expected: int
):
    clock = Clock()
    monkeypatch.setattr(batching, "time", SimpleNamespace(perf_counter=lambda: clock.now))

    def run(_: str) -> None:
        samples = spy.calls[-1][1]
        clock.pass_by(per_call + samples * (1 if samples <= cached else 2))

    spy.before = run
    spied.use("full")
    assert measure_best_batch(spied, make_images(20)) == expected


@pytest.mark.parametrize(
    ("per_move", "per_sample", "expected"),
    [
        (0.002, 0.010, 7),  # 0.05 + 0.002 k < 0.01 k
        (0.000, 0.010, 5),
        (0.000, 1.000, 1),
        (0.020, 0.010, 21),  # moving takes longer than computing: never
        (0.000, 0.000, 21),
    ],
)
def test_moving_pays_from_where_it_takes_less_than_it_saves(
    spied: Session, spy: Spy, monkeypatch: pytest.MonkeyPatch, per_move, per_sample, expected
):
    clock = Clock()
    monkeypatch.setattr(batching, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    spy.before = lambda piece: clock.pass_by(per_sample * spy.calls[-1][1])

    def keep(context: Any, order: np.ndarray, tensors: Any) -> None:
        clock.pass_by(0.05 + per_move * int((order != np.arange(len(order))).sum()))

    monkeypatch.setattr(SpiedContext, "keep", keep, raising=False)
    assert measure_compaction(spied, make_images(20)) == {"3": expected, "7": expected}
