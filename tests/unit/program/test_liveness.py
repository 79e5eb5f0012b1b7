"""What a configuration runs of a program: a committed table that other languages share, and the rule behind it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dyce_runtime import Configuration
from dyce_runtime.bundle.manifest import Manifest
from dyce_runtime.program.liveness import Choosing, Copy, Leaving, Needed, effect_of, live_after, needed
from dyce_runtime.program.operations import Feed, Leave, Run
from tests import choices, golden, sequences
from tests.manifests import chain

TABLE = Path(__file__).parents[2] / "data" / "liveness.json"


def manifest_of(name: str) -> Manifest:
    return msgspec.json.decode((golden.bundle(name) / "manifest.json").read_bytes(), type=Manifest)


def written(operation: Needed) -> str:
    """An operation as the table has it."""
    if isinstance(operation, Feed):
        return f"feed {operation.input}"
    if isinstance(operation, Run):
        return f"run {operation.piece}"
    if isinstance(operation, Copy):
        return " ".join(["copy", *(f"{source} to {to}" for to, source in operation.copies.items())])
    if isinstance(operation, Choosing):
        return f"choose {operation.gate} by {operation.by} at {', '.join(f'{cut:.9g}' for cut in operation.cut_points)}"
    rule = "always" if operation.threshold == float("-inf") else f"above {operation.threshold:.9g}"
    return f"leave {operation.exit} with {operation.head} {rule}"


@pytest.mark.parametrize("row", json.loads(TABLE.read_text()), ids=lambda row: f"{row['bundle']}: {row['title']}")
def test_the_operations_are_those_of_the_table(row: dict[str, Any]):
    configuration = msgspec.convert({"name": "row", **row["configuration"]}, Configuration)
    last, heads = (row["cap"], {}) if not isinstance(row["cap"], list) else (row["cap"][0], dict([row["cap"]]))
    found = needed(manifest_of(row["bundle"]), configuration, last, heads)
    assert [written(operation) for operation in found] == row["operations"]


# --- the rule behind it ----------------------------------------------------------------------------------------------


@st.composite
def chains(draw: st.DrawFn) -> tuple[Manifest, Configuration]:
    segments = draw(st.integers(1, 6))
    of_exit = st.dictionaries(st.sampled_from("abc"), st.just(1), min_size=1)
    heads = draw(st.lists(of_exit, min_size=segments - 1, max_size=segments - 1))
    setting = {
        str(k): {"head": draw(st.sampled_from(sorted(types))), "threshold": draw(st.floats(0, 1, width=32))}
        for k, types in enumerate(heads)
        if draw(st.booleans())
    }
    return chain([1] * segments, heads), msgspec.convert({"name": "drawn", "exits": setting}, Configuration)


cases = st.one_of(
    chains(),
    sequences.configurations.map(lambda one: (manifest_of("sequence"), one)),
    choices.configurations.map(lambda one: (manifest_of("choices"), one)),
)


@given(cases, st.data())
def test_all_that_is_needed_runs_and_nothing_else(case: tuple[Manifest, Configuration], data: st.DataObject):
    """Forwards: every tensor was made by the last operation of the program that makes it. Backwards: all are read."""
    manifest, configuration = case
    cap = data.draw(st.sampled_from([None, *(exit.id for exit in manifest.exits)]))
    found = needed(manifest, configuration, cap)
    pieces = {piece.id: piece for piece in manifest.pieces}
    made_by: dict[str, Needed] = {}
    asked: set[int] = set()
    for operation in found:
        reads, writes = effect_of(operation, pieces)
        asked |= {id(made_by[name]) for name in reads}
        made_by |= dict.fromkeys(writes, operation)
    assert all(isinstance(operation, Leaving) or id(operation) in asked for operation in found), "nothing in vain"
    assert isinstance(found[-1], Leaving)
    assert found[-1].threshold == float("-inf")
    for leave in (operation for operation in found if isinstance(operation, Leaving)):
        before = found[: found.index(leave)]
        last = next(op for op in reversed(before) if "logits" in effect_of(op, pieces)[1])
        assert last == Run(manifest.exit(leave.exit).head(leave.head).piece), "its own head answers"
    on = [one.exit for one in manifest.program if isinstance(one, Leave) and one.exit in configuration.exits]
    places = [manifest.exit_index(exit) for exit in dict.fromkeys(on)]
    end = manifest.exit_index(cap) if cap else len(manifest.exits) - 1
    assert [manifest.exit_index(one.exit) for one in found if isinstance(one, Leaving)] == [
        *(place for place in places if place < end),
        end,
    ]


@given(cases)
def test_what_is_live_is_what_a_later_operation_reads(case: tuple[Manifest, Configuration]):
    manifest, configuration = case
    operations = needed(manifest, configuration)
    pieces = {piece.id: piece for piece in manifest.pieces}
    for place, live in enumerate(live_after(operations, pieces)):
        wanted = set()
        for name in {spec.name for spec in manifest.tensors}:
            for later in operations[place + 1 :]:
                reads, writes = effect_of(later, pieces)
                if name in reads:
                    wanted.add(name)
                if name in reads | writes:
                    break
        assert set(live) == wanted
