"""Joining pieces: consecutive segments, or a whole network with all its heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from dyce_export.graph.onnx_graphs import IR_VERSION, OPSET
from dyce_runtime.bundle.manifest import Manifest
from dyce_runtime.bundle.reader import Bundle
from dyce_runtime.program.operations import Run


@dataclass(frozen=True)
class Network:
    """All segments and heads of a bundle as one graph, from the images to every decision.

    Attributes:
        manifest: the manifest of the bundle.
        model: the graph. Tensors and nodes have their names in the piece, followed by a dot and the id of the piece.
        nodes: piece id to the names of its nodes.
        decision: names of the nodes that follow the logits of the last segment of a network.
    """

    manifest: Manifest
    model: ir.Model
    nodes: dict[str, tuple[str, ...]]
    decision: tuple[str, ...]


def join(parts: Sequence[ir.Model]) -> ir.Model:
    """Join models that run one after another; the outputs of each are the inputs of the next, in that order.

    The parts are emptied: their nodes move into the result.
    """
    graph = _graph_that_reads(parts[0].graph.inputs)
    live = list(graph.inputs)
    for number, part in enumerate(parts):
        live = _absorb(graph, part, live, str(number))
    for value in live:
        value.name = str(value.name).removesuffix(f".{len(parts) - 1}")
    graph.outputs.extend(live)
    return ir.Model(graph, ir_version=IR_VERSION)


def assemble(bundle: Bundle) -> Network:
    """Return the program of a bundle as one graph: the joined segments of every network, with all heads."""
    manifest = bundle.manifest
    parts = {piece.id: ir.load(bundle.file(piece.file)) for piece in manifest.pieces if piece.role != "span"}
    nodes = {id: tuple(f"{node.name}.{id}" for node in part.graph) for id, part in parts.items()}
    read = {name: id for id in parts for name in manifest.piece(id).reads}
    values = {str(value.name): value for id in parts for value in parts[id].graph.inputs}
    graph = _graph_that_reads([values[name] for name in manifest.inputs if name in read])
    known: dict[str, ir.Value] = {str(value.name): value for value in graph.inputs}
    decisions: dict[str, None] = {}
    for operation in manifest.program:
        if isinstance(operation, Run):
            piece = manifest.piece(operation.piece)
            made = _absorb(graph, parts[piece.id], [known[name] for name in piece.reads], piece.id)
            known |= zip(piece.writes, made, strict=True)
            if piece.answers:
                graph.outputs.extend(made)
            if piece.answers and piece.role == "segment":
                decisions |= _after(made[0])
    return Network(manifest, ir.Model(graph, ir_version=IR_VERSION), nodes, tuple(decisions))


def _after(value: ir.Value) -> dict[str, None]:
    """Return the names of all nodes that depend on a value, each once."""
    found: dict[str, None] = {}
    for node in value.consumers():
        found[str(node.name)] = None
        for output in node.outputs:
            found |= _after(output)
    return found


def _graph_that_reads(inputs: Sequence[ir.Value]) -> ir.Graph:
    own = [ir.Value(name=value.name, shape=value.shape, type=value.type) for value in inputs]
    return ir.Graph(own, [], nodes=[], opset_imports={"": OPSET}, name="joined")


def _absorb(graph: ir.Graph, part: ir.Model, given: Sequence[ir.Value], suffix: str) -> list[ir.Value]:
    """Move the nodes of a part into ``graph``, where they read ``given``; return the outputs of the part."""
    made, outputs, weights = list(part.graph), list(part.graph.outputs), list(part.graph.initializers.values())
    for own, value in zip(part.graph.inputs, given, strict=True):
        ir.convenience.replace_all_uses_with(own, value)
    for value in (*weights, *(output for node in made for output in node.outputs)):
        value.name = f"{value.name}.{suffix}"
    for node in made:
        node.name = f"{node.name}.{suffix}"
    part.graph.inputs.clear()
    part.graph.outputs.clear()
    part.graph.initializers.clear()
    part.graph.remove(made)
    graph.extend(made)
    for weight in weights:
        graph.register_initializer(weight)
    return outputs
