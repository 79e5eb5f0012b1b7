"""Write a model truncated at an exit, with the heads on the way, as one ONNX graph: the least that a sample needs."""

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
    """Write a graph for every exit that samples can take under a configuration, and return the files by exit index.

    The graphs are merged from the segments and heads of the bundle.
    """
    found: dict[int, Path] = {}
    graph: onnx.ModelProto | None = None
    # Name of each tensor in the manifest to its name in the graph.
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
    """Return a copy whose only outputs are these values."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    kept = [output for output in copy.graph.output if output.name in names]
    del copy.graph.output[:]
    copy.graph.output.extend(kept)
    return copy


def _append(
    graph: onnx.ModelProto | None, bundle: Bundle, id: str, known: dict[str, str], answers: list[str]
) -> onnx.ModelProto:
    """Return the graph with a further piece appended, whose inputs are read from ``known``.

    All tensors in ``known`` and ``answers`` are outputs of the graph, so that later pieces can read them.
    """
    piece = bundle.manifest.piece(id)
    loaded = onnx.load(bundle.file(piece.file))
    del loaded.metadata_props[:]  # graphs with different values of the same property cannot be merged
    loaded = compose.add_prefix(loaded, f"{id}/")
    pairs = [(known[name], f"{id}/{name}") for name in piece.reads if name in known]
    known.update({name: f"{id}/{name}" for name in piece.writes})
    if graph is None:
        return loaded
    outputs = dict.fromkeys((*answers, *known.values()))
    return compose.merge_models(graph, loaded, io_map=pairs, outputs=list(outputs))
