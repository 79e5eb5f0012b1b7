"""A model truncated at an exit, with the heads that a sample passes on the way, as one ONNX graph: the ideal of a piece."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import compose

from dyce_runtime.bundle.configuration import Configuration
from dyce_runtime.bundle.manifest import DECISION
from dyce_runtime.bundle.reader import Bundle
from dyce_runtime.execution.plan import make_plan


def write_truncated(bundle: Bundle, configuration: Configuration, folder: Path) -> dict[int, Path]:
    """One graph for every exit that a configuration lets samples take, by its index, made from the base segments."""
    segments = [p.id for p in bundle.manifest.pieces if p.kind == "segment"]
    steps = make_plan(bundle.manifest, configuration, segments + _heads(bundle)).steps
    found: dict[int, Path] = {}
    graph, seams, decided = None, [], []
    for step in steps:
        for id in step.body:
            graph = _append(graph, bundle, id, seams, decided)
            seams = [f"{id}/{tensor.name}" for tensor in bundle.manifest.piece(id).outputs]
        if step.head is None:
            decided, seams = [*decided, *seams], []
        else:
            graph = _append(graph, bundle, step.head, seams, [*decided, *seams])
            decided = [*decided, *(f"{step.head}/{name}" for name in DECISION)]
        found[step.exit] = folder / f"exit_{step.exit}.onnx"
        onnx.save(compose_outputs(graph, decided), found[step.exit])
    return found


def compose_outputs(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """A copy that returns those values only."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    kept = [output for output in copy.graph.output if output.name in names]
    del copy.graph.output[:]
    copy.graph.output.extend(kept)
    return copy


def _heads(bundle: Bundle) -> list[str]:
    return [piece.id for piece in bundle.manifest.pieces if piece.kind == "head"]


def _append(
    graph: onnx.ModelProto | None, bundle: Bundle, id: str, seams: list[str], kept: list[str]
) -> onnx.ModelProto:
    """The graph with a further piece behind ``seams``; returns ``kept`` and what the piece returns."""
    piece = bundle.manifest.piece(id)
    loaded = onnx.load(bundle.file(piece.file))
    del loaded.metadata_props[:]  # merging refuses the name of another piece
    loaded = compose.add_prefix(loaded, f"{id}/")
    if graph is None:
        return loaded
    pairs = list(zip(seams, (f"{id}/{tensor.name}" for tensor in piece.inputs), strict=True))
    outputs = [*kept, *(f"{id}/{tensor.name}" for tensor in piece.outputs)]
    return compose.merge_models(graph, loaded, io_map=pairs, outputs=list(dict.fromkeys(outputs)))
