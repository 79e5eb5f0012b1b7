from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dyce_runtime import Configuration, open_bundle
from dyce_runtime.bundle.configuration import ExitSetting
from dyce_runtime.bundle.manifest import Manifest
from dyce_runtime.errors import ConfigurationError
from dyce_runtime.execution.plan import make_plan, pieces_of
from tests.bundles import NAMED, on
from tests.manifests import chain, seen


@pytest.fixture(scope="module")
def manifest(tiny_bundle: Path) -> Manifest:
    return open_bundle(tiny_bundle).manifest


def model(segments: int, spans: list[tuple[int, int]]) -> Manifest:
    """With an exit after every segment and the given spans."""
    return chain([1] * segments, [{"h": 1}] * (segments - 1), spans)


def fewest(spans: list[tuple[int, int]], first: int, last: int) -> int:
    """The smallest number of segments and spans from ``first`` to ``last``, by trying everything."""
    if first > last:
        return 0
    ends = {first, *(end for start, end in spans if start == first and end <= last)}
    return 1 + min(fewest(spans, end + 1, last) for end in ends)


@st.composite
def cases(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]], Configuration]:
    segments = draw(st.integers(1, 7))
    possible = [(first, last) for first in range(segments) for last in range(first + 1, segments)]
    spans = draw(st.lists(st.sampled_from(possible), unique=True)) if possible else []
    enabled = draw(st.sets(st.integers(0, segments - 2))) if segments > 1 else set()
    return segments, spans, Configuration("drawn", {str(k): ExitSetting("h", 0.5) for k in enabled})


@given(cases())
def test_a_plan_covers_every_segment_once_in_order_with_the_fewest_pieces(case):
    segments, spans, configuration = case
    made = model(segments, spans)
    start = 0
    for stretch in seen(make_plan(made, configuration), made):
        step_start = start
        for piece in map(made.piece, stretch.body):
            covers = piece.covers or (piece.id,)
            assert covers == tuple(f"segment_{k}" for k in range(start, start + len(covers)))
            start += len(covers)
        assert stretch.leave is not None
        assert start == stretch.leave.exit + 1
        assert len(stretch.body) == fewest(spans, step_start, stretch.leave.exit)
    assert start == segments


@given(cases())
def test_a_plan_stops_at_the_exits_that_are_on_and_at_the_end(case):
    segments, spans, configuration = case
    made = model(segments, spans)
    plan = make_plan(made, configuration)
    enabled = sorted(map(int, configuration.exits))
    assert [leave.exit for leave in plan.leaves] == [*enabled, segments - 1]
    assert [stretch.head for stretch in seen(plan, made)] == [*(f"head_h_{k}" for k in enabled), None]


def test_overlapping_spans_do_not_cost_a_piece():
    made = model(4, [(0, 1), (1, 3)])
    assert seen(make_plan(made, Configuration("full")), made)[0].body == ("segment_0", "span_1_3")


@pytest.mark.parametrize(
    ("exits", "bodies"),
    [
        ({}, [("full",)]),
        (on(exit7=0.5), [("span_00_01",), ("segment_02",)]),
        (on(exit3=0.5), [("segment_00",), ("segment_01", "segment_02")]),
        (on(exit3=0.5, exit7=0.5), [("segment_00",), ("segment_01",), ("segment_02",)]),
    ],
)
def test_a_span_runs_where_it_fits_exactly(manifest: Manifest, exits, bodies):
    assert [stretch.body for stretch in seen(make_plan(manifest, Configuration("mine", exits)), manifest)] == bodies


def test_thresholds_are_float32_and_an_order_in_the_dictionary_means_nothing(manifest: Manifest):
    plan = make_plan(manifest, Configuration("mine", on(exit7=0.1, exit3=0.2)))
    thresholds = [leave.threshold for leave in plan.leaves]
    assert thresholds == [np.float32(0.2), np.float32(0.1), np.float32(-np.inf)]
    assert {threshold.dtype for threshold in thresholds} == {np.dtype(np.float32)}


def test_a_configuration_that_does_not_fit_has_no_plan(manifest: Manifest):
    with pytest.raises(ConfigurationError, match="exit '5'"):
        make_plan(manifest, Configuration("foreign", on(exit5=0.5)))


def test_the_pieces_of_several_plans_are_named_once(manifest: Manifest):
    plans = [make_plan(manifest, Configuration(name, exits)) for name, exits in NAMED.items()]
    pieces = pieces_of(plans)
    assert sorted(pieces) == sorted(piece.id for piece in manifest.pieces)
    assert pieces_of(plans[:1]) == ["full"]
