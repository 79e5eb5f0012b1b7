"""Write the pieces of a saver into another bundle, under new names and with logits in the order of its classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import msgspec
import numpy as np
import onnx_ir as ir

from dyce_export.graph import onnx_graphs
from dyce_export.graph.programs import as_saver
from dyce_export.savers.exposed_features import expose_features
from dyce_runtime.bundle.manifest import ANSWER, LOGITS, Exit, Input, Network, Piece, TensorSpec
from dyce_runtime.bundle.reader import Bundle
from dyce_runtime.program.operations import Operation


class Part(msgspec.Struct, frozen=True):
    """What a saver adds to the manifest of a composed bundle, all under its new names."""

    network: Network
    exits: tuple[Exit, ...]
    tensors: tuple[TensorSpec, ...]
    pieces: tuple[Piece, ...]
    program: tuple[Operation, ...]


def write_part(
    saver: Bundle, id: str, image: TensorSpec, order: Sequence[int] | None, folder: Path, *, expose: bool = False
) -> Part:
    """Write the segments and heads of a saver into the bundle in ``folder``.

    Args:
        id: id of the saver in that bundle, such as ``saver0``. Its last exit has the same id; its other exits are named
            ``saver0.3`` and so on.
        image: the input that it reads.
        order: for every class of the base its index among the saver's classes; None if they are the same.
        expose: add features and logits to the outputs of its last segment; see :func:`expose_features`.

    Raises:
        UsageError: see :func:`expose_features`.
    """
    manifest, last = saver.manifest, saver.manifest.exits[-1]
    names = {piece.id: f"{id}_{piece.id}" for piece in manifest.pieces}
    exits = {exit.id: id if exit is last else f"{id}.{exit.id}" for exit in manifest.exits}
    tensors = {spec.name: f"{id}_{spec.name}" for spec in manifest.tensors}
    tensors |= {manifest.input.name: image.name, **{name: name for name in ANSWER}}
    exposed: list[TensorSpec] = []

    def moved(piece: Piece) -> Piece:
        graph = ir.load(saver.file(piece.file))
        for value in (*graph.graph.inputs, *graph.graph.outputs):
            value.name = tensors[str(value.name)]
        if order is not None and piece.answers:
            _reorder(graph.graph, order)
        if expose and piece.id == last.heads[0].piece:
            exposed.extend(expose_features(graph.graph, id, manifest.model.name))
        file = PurePosixPath(piece.file).with_name(f"{names[piece.id]}.onnx")
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        data = onnx_graphs.save(graph, folder / file, {"piece": names[piece.id]})
        return msgspec.structs.replace(
            piece,
            id=names[piece.id],
            file=str(file),
            reads=tuple(str(value.name) for value in graph.graph.inputs),
            writes=tuple(str(value.name) for value in graph.graph.outputs),
            data=tuple(f"{file.parent}/{name}" for name in data),
        )

    def exit(own: Exit) -> Exit:
        heads = tuple(msgspec.structs.replace(head, piece=names[head.piece]) for head in own.heads)
        module = f"the classifier of {manifest.model.name}" if own is last else own.module
        return msgspec.structs.replace(own, id=exits[own.id], module=module, heads=heads)

    pieces = tuple(moved(piece) for piece in manifest.pieces if piece.role != "span")
    between = (spec for spec in manifest.tensors if spec.lifetime == "activation")
    renamed = (msgspec.structs.replace(spec, name=tensors[spec.name]) for spec in between)
    return Part(
        network=Network(id, manifest.model, (Input(image.name, manifest.preprocessing),), tuple(exits.values())),
        exits=tuple(map(exit, manifest.exits)),
        tensors=(image, *renamed, *exposed),
        pieces=pieces,
        program=as_saver(manifest.program, names, tensors, exits),
    )


def _reorder(graph: ir.Graph, order: Sequence[int]) -> None:
    """Reorder the logits along the class axis, so that everything that reads them sees the new order."""
    logits = graph.outputs[0]
    rows = ir.tensor(np.array(order, np.int64), name="class_order")
    shape, kind = ir.Shape([len(order)]), ir.TensorType(rows.dtype)
    constant = ir.Value(name=rows.name, shape=shape, type=kind, const_value=rows)
    graph.register_initializer(constant)
    node = ir.node("Gather", [logits, constant], {"axis": 1})
    gathered = node.outputs[0]
    gathered.name, gathered.shape, gathered.type = LOGITS, logits.shape, logits.type
    logits.name = "logits_of_saver"
    ir.convenience.replace_all_uses_with(logits, gathered, replace_graph_outputs=True)
    node.replace_input_with(0, logits)
    graph.insert_after(logits.producer(), node)  # type: ignore[arg-type]
