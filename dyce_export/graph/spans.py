"""Spans: consecutive segments between two enabled exits, joined into one graph."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from dyce_export.graph import onnx_graphs
from dyce_export.graph.joining import join
from dyce_runtime.bundle.configuration import Configurations
from dyce_runtime.bundle.manifest import FINAL, UNCUT, Manifest, Piece
from dyce_runtime.execution.plan import segment_runs
from dyce_runtime.program.structure import segments_of

_SEGMENT = "segment_"


def write_spans(manifest: Manifest, configurations: Configurations, folder: Path) -> tuple[Piece, ...]:
    """Write a span for each run of several segments that a named configuration executes without an exit between.

    Args:
        manifest: manifest of the bundle in ``folder``, which contains its segments and no span but the uncut model.

    Returns:
        the spans written, to be added to the manifest.
    """
    named = (configurations.get(name) for name in configurations.named)
    wanted = {run for configuration in named for run in segment_runs(manifest, configuration) if len(run) > 1}
    order = [piece.id for piece in manifest.pieces]
    places = {tuple(order.index(id) for id in run): run for run in wanted}
    known = {span.covers for span in manifest.spans}
    return tuple(
        _write_span(_name(covers), manifest, covers, folder)
        for _, covers in sorted(places.items())
        if covers not in known
    )


def _name(covers: Sequence[str]) -> str:
    """Name a span after its first and last segment, such as ``span_00_02``."""
    return "_".join(["span", covers[0].removeprefix(_SEGMENT), covers[-1].removeprefix(_SEGMENT)])


def write_uncut(manifest: Manifest, folder: Path) -> Piece:
    """Write the span over all segments of a bundle's base model if the bundle has none yet."""
    return _write_span(UNCUT, manifest, [piece.id for piece in segments_of(manifest, FINAL)], folder)


def _write_span(id: str, manifest: Manifest, covers: Sequence[str], folder: Path) -> Piece:
    segments = [manifest.piece(segment) for segment in covers]
    graph = join([ir.load(folder / segment.file) for segment in segments])
    file = f"spans/{id}.onnx"
    (folder / file).parent.mkdir(exist_ok=True)
    data = onnx_graphs.save(graph, folder / file, {"piece": id, "segments": ",".join(covers)})
    return Piece(
        id,
        "span",
        file,
        segments[0].reads,
        segments[-1].writes,
        sum(segment.macs for segment in segments),
        tuple(f"spans/{name}" for name in data),
        tuple(covers),
    )
