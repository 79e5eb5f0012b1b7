"""Pieces put together again: segments that run one after another, or the whole network with every head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from dyce_export.graph.onnx_graphs import IR_VERSION, OPSET
from dyce_runtime.bundle.manifest import OWN, Manifest, Piece
from dyce_runtime.bundle.reader import Bundle


@dataclass(frozen=True)
class Network:
    """All segments and heads of a bundle as one graph, from the images to every decision.

    Attributes:
        manifest: of the bundle.
        model: the graph. A tensor or node is called as in its piece, followed by a dot and the id of that.
        nodes: names of the nodes of every piece.
        decision: names of those behind the logits of the last segment of a network.
    """

    manifest: Manifest
    model: ir.Model
    nodes: dict[str, tuple[str, ...]]
    decision: tuple[str, ...]


def join(parts: Sequence[ir.Model]) -> ir.Model:
    """Models that run one after another as one: what each returns is what the next reads, in that order.

    The parts are used up.
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
    """The segments of every network of a bundle joined, with the heads beside them."""
    manifest = bundle.manifest
    load = {piece.id: bundle.file(piece.file) for piece in manifest.pieces if piece.kind != "span"}
    parts = {id: ir.load(path) for id, path in load.items()}
    nodes = {id: tuple(f"{node.name}.{id}" for node in part.graph) for id, part in parts.items()}
    starts = {net.input.name: parts[manifest.segments[net.first].id].graph.inputs[0] for net in manifest.networks}
    graph = _graph_that_reads(list(starts.values()))
    images = {str(value.name): value for value in graph.inputs}
    decisions: dict[str, None] = {}
    left: dict[str, ir.Value] = {}

    def absorb(piece: Piece, live: list[ir.Value]) -> list[ir.Value]:
        further = [left[spec.name] for spec in piece.inputs[len(live) :]]
        made = _absorb(graph, parts[piece.id], [*live, *further], piece.id)
        behind = len(made) - len(piece.left)
        left.update(zip((spec.name for spec in piece.left), made[behind:], strict=True))
        return made

    for network in manifest.networks:
        live = [images[network.input.name]]
        for index in range(network.first, network.last + 1):
            live = absorb(manifest.segments[index], live)
            for head in (head for head in manifest.exits[index].heads if head.type != OWN):
                graph.outputs.extend(absorb(manifest.piece(head.piece), live))
        graph.outputs.extend(live)
        decisions |= _behind(live[0])
    return Network(manifest, ir.Model(graph, ir_version=IR_VERSION), nodes, tuple(decisions))


def _behind(value: ir.Value) -> dict[str, None]:
    """Names of all nodes that depend on a value, each once."""
    found: dict[str, None] = {}
    for node in value.consumers():
        found[str(node.name)] = None
        for output in node.outputs:
            found |= _behind(output)
    return found


def _graph_that_reads(inputs: Sequence[ir.Value]) -> ir.Graph:
    own = [ir.Value(name=value.name, shape=value.shape, type=value.type) for value in inputs]
    return ir.Graph(own, [], nodes=[], opset_imports={"": OPSET}, name="joined")


def _absorb(graph: ir.Graph, part: ir.Model, given: Sequence[ir.Value], suffix: str) -> list[ir.Value]:
    """Move the nodes of a part into ``graph``, where they read ``given``; returns what the part returned."""
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
