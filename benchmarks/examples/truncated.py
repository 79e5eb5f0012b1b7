"""A model truncated at an exit, with the heads that a sample passes on the way, as one ONNX graph: the ideal of a piece."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import compose

from dyce_runtime.bundle.configuration import Configuration
from dyce_runtime.bundle.manifest import ANSWER
from dyce_runtime.bundle.reader import Bundle
from dyce_runtime.execution.plan import LeaveAt, make_plan
from dyce_runtime.program.operations import Run


def write_truncated(bundle: Bundle, configuration: Configuration, folder: Path) -> dict[int, Path]:
    """One graph for every exit that a configuration lets samples take, by its index, made from the base segments."""
    found: dict[int, Path] = {}
    graph: onnx.ModelProto | None = None
    # By the name of a tensor, what it is called in the graph.
    known: dict[str, str] = {}
    answers: list[str] = []
    for step in make_plan(bundle.manifest, configuration, ()).steps:
        if isinstance(step, LeaveAt):
            answers += [known[name] for name in ANSWER]
            found[step.exit] = folder / f"exit_{step.exit}.onnx"
            onnx.save(compose_outputs(graph, answers), found[step.exit])
        elif isinstance(step, Run):
            graph = _append(graph, bundle, step.piece, known, answers)
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
    graph: onnx.ModelProto | None, bundle: Bundle, id: str, known: dict[str, str], answers: list[str]
) -> onnx.ModelProto:
    """The graph with a further piece, which reads what is known; it returns all that is known, and the answers."""
    piece = bundle.manifest.piece(id)
    loaded = onnx.load(bundle.file(piece.file))
    del loaded.metadata_props[:]  # merging refuses the name of another piece
    loaded = compose.add_prefix(loaded, f"{id}/")
    pairs = [(known[name], f"{id}/{name}") for name in piece.reads if name in known]
    known.update({name: f"{id}/{name}" for name in piece.writes})
    if graph is None:
        return loaded
    outputs = dict.fromkeys((*answers, *known.values()))
    return compose.merge_models(graph, loaded, io_map=pairs, outputs=list(outputs))
