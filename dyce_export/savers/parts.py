"""The pieces of a saver as part of another bundle: under names of their own, answering in the base's classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import msgspec
import numpy as np
import onnx_ir as ir

from dyce_export.graph import onnx_graphs
from dyce_export.savers.exposed_features import expose_features
from dyce_runtime.bundle.manifest import DECISION, FINAL, OWN, Exit, Head, Network, Piece, TensorSpec
from dyce_runtime.bundle.reader import Bundle


class Part(msgspec.Struct, frozen=True):
    """A saver within a bundle."""

    network: Network
    exits: tuple[Exit, ...]
    pieces: tuple[Piece, ...]


def write_part(
    saver: Bundle,
    id: str,
    first: int,
    image: TensorSpec,
    order: Sequence[int] | None,
    folder: Path,
    *,
    expose: bool = False,
) -> Part:
    """Write the segments and heads of a saver into the bundle in ``folder``.

    Args:
        id: ``saver0``, for example: its last exit is called so, the others ``saver0.3`` and the like.
        first: index of its first segment there.
        image: what it reads.
        order: for every class of the base its index among those of the saver; None if they are the same.
        expose: let its last segment leave features and logits; see :func:`expose_features`.
    """
    manifest, last = saver.manifest, len(saver.manifest.exits) - 1
    names = {piece.id: f"{id}_{piece.id}" for piece in manifest.pieces}
    tensors = {manifest.input.name: image.name}
    tensors |= {spec.name: f"{id}_{spec.name}" for segment in manifest.segments[:-1] for spec in segment.outputs}

    def moved(piece: Piece) -> Piece:
        graph = ir.load(saver.file(piece.file))
        for value in (*graph.graph.inputs, *graph.graph.outputs):
            value.name = tensors.get(str(value.name), value.name)
        if order is not None and graph.graph.outputs[0].name == DECISION[0]:
            _reorder(graph.graph, order)
        left = expose_features(graph.graph, id, manifest.model.name) if expose and piece.last == last else ()
        file = PurePosixPath(piece.file).with_name(f"{names[piece.id]}.onnx")
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        data = onnx_graphs.save(graph, folder / file, {"piece": names[piece.id]})
        return msgspec.structs.replace(
            piece,
            id=names[piece.id],
            file=str(file),
            first=first + piece.first,
            last=first + piece.last,
            inputs=_renamed(piece.inputs, tensors),
            outputs=(*_renamed(piece.outputs, tensors), *left),
            data=tuple(f"{file.parent}/{name}" for name in data),
        )

    def exit(own: Exit) -> Exit:
        heads = tuple(msgspec.structs.replace(head, piece=names[head.piece]) for head in own.heads)
        if own.id != FINAL:
            return msgspec.structs.replace(own, id=f"{id}.{own.id}", heads=heads)
        segment = manifest.segments[-1]
        head = Head(OWN, names[segment.id], trained=True, temperature=_temperature(saver.file(segment.file)))
        return Exit(id, f"the classifier of {manifest.model.name}", None, (head,))

    network = Network(id, first, first + last, manifest.model, image, manifest.preprocessing)
    pieces = [moved(piece) for piece in manifest.pieces if piece.kind != "span"]
    return Part(network, tuple(map(exit, manifest.exits)), tuple(pieces))


def _renamed(specs: Sequence[TensorSpec], names: dict[str, str]) -> tuple[TensorSpec, ...]:
    return tuple(msgspec.structs.replace(spec, name=names.get(spec.name, spec.name)) for spec in specs)


def _reorder(graph: ir.Graph, order: Sequence[int]) -> None:
    """Put the logits into another order before anything reads them."""
    logits = graph.outputs[0]
    rows = ir.tensor(np.array(order, np.int64), name="class_order")
    shape, kind = ir.Shape([len(order)]), ir.TensorType(rows.dtype)
    constant = ir.Value(name=rows.name, shape=shape, type=kind, const_value=rows)
    graph.register_initializer(constant)
    node = ir.node("Gather", [logits, constant], {"axis": 1})
    gathered = node.outputs[0]
    gathered.name, gathered.shape, gathered.type = DECISION[0], logits.shape, logits.type
    logits.name = "logits_of_saver"
    ir.convenience.replace_all_uses_with(logits, gathered, replace_graph_outputs=True)
    node.replace_input_with(0, logits)
    graph.insert_after(logits.producer(), node)  # type: ignore[arg-type]


def _temperature(segment: Path) -> float:
    """Of the final head, which a graph holds where it is not 1."""
    found = ir.load(segment).graph.initializers.get("temperature")
    return 1.0 if found is None or found.const_value is None else float(found.const_value.numpy())
