"""Spans: the segments between two enabled exits as one graph, made from the segments of a bundle."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from dyce_export.graph import onnx_graphs
from dyce_export.graph.joining import join
from dyce_runtime.bundle.configuration import Configurations
from dyce_runtime.bundle.manifest import UNCUT, Manifest, Piece
from dyce_runtime.execution.plan import stretches


def write_spans(manifest: Manifest, configurations: Configurations, folder: Path) -> tuple[Piece, ...]:
    """Write a span for every stretch of several segments that a named configuration runs between two exits.

    Args:
        manifest: of the bundle in ``folder``, whose segments are read and which has no spans but the uncut model.

    Returns:
        the spans written, for the manifest.
    """
    named = (configurations.get(name) for name in configurations.named)
    wanted = {stretch for configuration in named for stretch in stretches(manifest, configuration)}
    known = {(piece.first, piece.last) for piece in manifest.pieces if piece.kind != "head"}
    return tuple(
        _write_span(f"span_{first:02d}_{last:02d}", manifest, first, last, folder)
        for first, last in sorted(wanted - known)
    )


def write_uncut(manifest: Manifest, folder: Path) -> Piece:
    """Write the span over all segments of the base of a bundle that has none yet."""
    return _write_span(UNCUT, manifest, manifest.base.first, manifest.base.last, folder)


def _write_span(id: str, manifest: Manifest, first: int, last: int, folder: Path) -> Piece:
    segments = manifest.segments[first : last + 1]
    graph = join([ir.load(folder / segment.file) for segment in segments])
    file = f"spans/{id}.onnx"
    (folder / file).parent.mkdir(exist_ok=True)
    data = onnx_graphs.save(graph, folder / file, {"piece": id, "segments": f"{first}-{last}"})
    return Piece(
        id,
        "span",
        file,
        first,
        last,
        segments[0].inputs,
        segments[-1].outputs,
        sum(segment.macs for segment in segments),
        tuple(f"spans/{name}" for name in data),
    )
