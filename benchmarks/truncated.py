"""A model truncated at an exit, with the heads that a sample passes on the way, as one ONNX graph: the ideal of a piece."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import compose

from dyce_runtime.bundle.configuration import Configuration
from dyce_runtime.bundle.manifest import ANSWER
from dyce_runtime.bundle.reader import Bundle
from dyce_runtime.execution.plan import make_plan


def write_truncated(bundle: Bundle, configuration: Configuration, folder: Path) -> dict[int, Path]:
    """One graph for every exit that a configuration lets samples take, by its index, made from the base segments."""
    steps = make_plan(bundle.manifest, configuration, ()).steps
    found: dict[int, Path] = {}
    graph, seams, decided = None, [], []
    for step in steps:
        for id in step.body:
            graph = _append(graph, bundle, id, seams, decided)
            seams = [f"{id}/{name}" for name in bundle.manifest.piece(id).writes]
        if step.head is None:
            decided, seams = [*decided, *seams], []
        else:
            graph = _append(graph, bundle, step.head, seams, [*decided, *seams])
            decided = [*decided, *(f"{step.head}/{name}" for name in ANSWER)]
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
    pairs = list(zip(seams, (f"{id}/{name}" for name in piece.reads), strict=True))
    outputs = [*kept, *(f"{id}/{name}" for name in piece.writes)]
    return compose.merge_models(graph, loaded, io_map=pairs, outputs=list(dict.fromkeys(outputs)))
