"""A network that was lowered as a whole, cut into its pieces again.

Where a seam is quantised, what crosses it are integers: the quantisation ends the segment before it, and everything
behind it starts with the dequantisation. So no value is rounded twice, and less memory is moved.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import onnx_ir as ir

from dyce_export.graph.joining import Network
from dyce_export.graph.onnx_graphs import extract, save
from dyce_export.graph.spans import write_uncut
from dyce_runtime.bundle.manifest import DECISION, UNCUT, Manifest, Piece, TensorSpec


def write_lowered(network: Network, lowered: ir.Model, precision: str, folder: Path) -> Manifest:
    """Write segments, heads and the uncut model in another precision; returns the manifest with these pieces.

    Args:
        lowered: as in :func:`cut`.
        folder: what stands there under the names of pieces is replaced.
    """
    pieces = []
    for piece, graph in cut(network, lowered):
        path = folder / piece.file
        path.parent.mkdir(parents=True, exist_ok=True)
        data = save(graph, path, {"piece": piece.id})
        pieces.append(msgspec.structs.replace(piece, data=tuple(f"{path.parent.name}/{name}" for name in data)))
    manifest = msgspec.structs.replace(
        network.manifest,
        pieces=tuple(pieces),
        precision=precision,
        precisions=(),
        files={},
        verification=None,
    )
    uncut = [write_uncut(manifest, folder)] if manifest.uncut == UNCUT else []
    return msgspec.structs.replace(manifest, pieces=(*pieces, *uncut))


def cut(network: Network, lowered: ir.Model) -> Iterator[tuple[Piece, ir.Model]]:
    """Segments and heads, with the types that their tensors have now.

    Args:
        lowered: ``network.model`` in another precision; tensors of the same name mean the same.
    """
    values = {value.name: value for value in _values(lowered.graph)}
    pieces = [piece for piece in network.manifest.pieces if piece.kind != "span"]
    stored = {
        spec.name: _stored(values[f"{spec.name}.{piece.id}"])
        for piece in pieces
        for spec in piece.outputs
        if spec.name not in DECISION
    }

    def typed(spec: TensorSpec) -> TensorSpec:
        value = stored.get(spec.name)
        return spec if value is None else msgspec.structs.replace(spec, dtype=str(value.dtype.numpy()))  # type: ignore[union-attr]

    for piece in pieces:
        inputs, outputs = tuple(map(typed, piece.inputs)), tuple(map(typed, piece.outputs))
        names = {name: str(value.name) for name, value in stored.items()}
        names |= {spec.name: f"{spec.name}.{piece.id}" for spec in outputs if spec.name in DECISION}
        yield msgspec.structs.replace(piece, inputs=inputs, outputs=outputs), extract(lowered, inputs, outputs, names)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    for node in graph:
        yield from node.outputs


def _stored(value: ir.Value) -> ir.Value:
    """What crosses a seam: the integers if nothing reads the tensor but one quantisation."""
    readers = list(value.consumers())
    if [reader.op_type for reader in readers] == ["QuantizeLinear"] and not value.is_graph_output():
        return readers[0].outputs[0]
    return value
