"""Manifests of models that do not exist: a chain of segments with heads and spans, for what only reads a manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dyce_export.graph.programs import network_program
from dyce_runtime.bundle.manifest import (
    ANSWER,
    BUILTIN,
    FINAL,
    SCHEMA_VERSION,
    Exit,
    Head,
    Input,
    Manifest,
    Model,
    Network,
    Piece,
    Preprocessing,
    TensorSpec,
)
from dyce_runtime.execution.plan import LeaveAt, Plan
from dyce_runtime.program.operations import Run


def chain(macs: Sequence[int], heads: Sequence[Mapping[str, int]], spans: Sequence[tuple[int, int]] = ()) -> Manifest:
    """A segment for each of ``macs``, called ``segment_0`` and so on, and an exit with heads after each but the last.

    Args:
        heads: exit by exit, type to multiply-accumulates; the piece of type ``a`` at exit 1 is ``head_a_1``.
        spans: first and last segment; the one from 0 to 1 is called ``span_0_1``.
    """
    last = len(macs) - 1
    names = ["image", *(f"seam_{k}" for k in range(last))]
    writes = [*((name,) for name in names[1:]), ANSWER]
    segments = [f"segment_{k}" for k in range(len(macs))]
    pieces = [Piece(segments[k], "segment", "file", (names[k],), writes[k], macs[k]) for k in range(len(macs))]
    exits = []
    for k, of_exit in enumerate(heads):
        for type, cost in of_exit.items():
            pieces.append(Piece(f"head_{type}_{k}", "head", "file", (names[k + 1],), ANSWER, cost))
        own = tuple(Head(type, f"head_{type}_{k}", True, 1.0) for type in of_exit)
        exits.append(Exit(str(k), "", own, k))
    exits.append(Exit(FINAL, "", (Head(BUILTIN, segments[-1], True, 1.0),)))
    for first, end in spans:
        covers = tuple(segments[first : end + 1])
        cost = sum(macs[first : end + 1])
        pieces.append(Piece(f"span_{first}_{end}", "span", "file", (names[first],), writes[end], cost, covers=covers))
    shapes = [TensorSpec("image", "float32", ("batch", 1, 2, 2), "input")]
    shapes += [TensorSpec(name, "float32", ("batch", 4)) for name in names[1:]]
    model = Model("chain", "tests", "module", 2, sum(macs), 0)
    way = Preprocessing(2, (2, 2), "bilinear", (0.5,), (0.5,))
    return Manifest(
        schema_version=SCHEMA_VERSION,
        requires=(),
        producer={},
        networks=(Network(FINAL, model, (Input("image", way),), tuple(exit.id for exit in exits)),),
        tensors=(*shapes, *answers(2)),
        pieces=tuple(pieces),
        exits=tuple(exits),
        program=network_program(["image"], segments, exits),
        heads="trained",
        files={"file": ""},
    )


def answers(classes: int) -> tuple[TensorSpec, ...]:
    """What every head writes."""
    logits, confidence, label = ANSWER
    return (
        TensorSpec(logits, "float32", ("batch", classes), "answer"),
        TensorSpec(confidence, "float32", ("batch",), "answer"),
        TensorSpec(label, "int64", ("batch",), "answer"),
    )


class Seen(NamedTuple):
    """A stretch of a plan: the segments and spans that run, the head after them, and the decision, if there is one."""

    body: tuple[str, ...]
    head: str | None
    leave: LeaveAt | None


def seen(plan: Plan, manifest: Manifest) -> list[Seen]:
    """A plan, cut where a head has answered or a network ends."""
    found: list[Seen] = []
    for stage in plan.stages:
        body: list[str] = []
        for step, after in zip(stage.steps, (*stage.steps[1:], None), strict=True):
            head = step.piece if isinstance(step, Run) and manifest.piece(step.piece).role == "head" else None
            if isinstance(step, Run) and head is None:
                body.append(step.piece)
            leave = step if isinstance(step, LeaveAt) else after if head and isinstance(after, LeaveAt) else None
            if head or (isinstance(step, LeaveAt) and step.piece in (*body, *_ends(manifest, body))) or after is None:
                if body or head:
                    found.append(Seen(tuple(body), head, leave))
                body = []
    return found


def _ends(manifest: Manifest, body: Sequence[str]) -> list[str]:
    """The last segments of spans."""
    return [manifest.piece(id).covers[-1] for id in body if manifest.piece(id).covers]
