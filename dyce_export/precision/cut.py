"""Cutting a network into its pieces again after it was lowered as a whole.

If a seam is quantised, integers cross it: the segment before it ends with the quantisation, and every piece after it
begins with the dequantisation. So no value is rounded twice, and less memory is moved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import onnx_ir as ir

from dyce_export.graph.joining import Network
from dyce_export.graph.onnx_graphs import extract, save
from dyce_export.graph.spans import write_uncut
from dyce_runtime.bundle.manifest import ANSWER, UNCUT, Manifest, Piece


def write_lowered(network: Network, lowered: ir.Model, precision: str, folder: Path) -> Manifest:
    """Write segments, heads and the uncut model in another precision; return the manifest with these pieces.

    Args:
        lowered: ``network.model`` in another precision; tensors of the same name correspond.
        folder: folder of the new bundle; existing files of pieces in it are replaced.
    """
    stored = _stored_tensors(network, lowered)
    types = {name: str(value.dtype.numpy()) for name, value in stored.items()}  # type: ignore[union-attr]
    tensors = tuple(
        msgspec.structs.replace(spec, dtype=types.get(spec.name, spec.dtype)) for spec in network.manifest.tensors
    )
    manifest = msgspec.structs.replace(
        network.manifest, tensors=tensors, precision=precision, precisions=(), files={}, verification=None
    )
    pieces = []
    for piece in (piece for piece in manifest.pieces if piece.role != "span"):
        path = folder / piece.file
        path.parent.mkdir(parents=True, exist_ok=True)
        data = save(_cut(manifest, piece, lowered, stored), path, {"piece": piece.id})
        pieces.append(msgspec.structs.replace(piece, data=tuple(f"{path.parent.name}/{name}" for name in data)))
    manifest = msgspec.structs.replace(manifest, pieces=tuple(pieces))
    uncut = [write_uncut(manifest, folder)] if manifest.uncut == UNCUT else []
    return msgspec.structs.replace(manifest, pieces=(*pieces, *uncut))


def _stored_tensors(network: Network, lowered: ir.Model) -> dict[str, ir.Value]:
    """Map the name of every tensor between pieces to the value that crosses there in the lowered graph."""
    values = {value.name: value for value in _values(lowered.graph)}
    return {
        name: _stored(values[f"{name}.{piece.id}"])
        for piece in network.manifest.pieces
        if piece.role != "span"
        for name in piece.writes
        if name not in ANSWER
    }


def _cut(manifest: Manifest, piece: Piece, lowered: ir.Model, stored: Mapping[str, ir.Value]) -> ir.Model:
    """Extract a segment or a head, with the types that its tensors have after lowering."""
    names = {name: str(value.name) for name, value in stored.items()}
    names |= {name: f"{name}.{piece.id}" for name in piece.writes if name in ANSWER}
    return extract(lowered, manifest.specs(piece.reads), manifest.specs(piece.writes), names)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    for node in graph:
        yield from node.outputs


def _stored(value: ir.Value) -> ir.Value:
    """Return the value that crosses a seam: the integers if the only reader of the tensor is one quantisation."""
    readers = list(value.consumers())
    if [reader.op_type for reader in readers] == ["QuantizeLinear"] and not value.is_graph_output():
        return readers[0].outputs[0]
    return value
