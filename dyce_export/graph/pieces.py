"""The pieces of a bundle (segments, heads and the uncut model): cut out of one ONNX graph and written to files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import onnx_ir as ir

from dyce_calibration.heads.training import TrainedHead
from dyce_export.graph import onnx_graphs
from dyce_export.graph.backbone import Backbone
from dyce_export.graph.exit_points import ExitPoint
from dyce_export.graph.layout import Layout
from dyce_export.graph.onnx_graphs import BATCH, IMAGE
from dyce_runtime.bundle.manifest import (
    BUILTIN,
    CONFIDENCE,
    FINAL,
    LABEL,
    LOGITS,
    UNCUT,
    Exit,
    Head,
    Piece,
    TensorSpec,
)


def image_spec(input_size: tuple[int, int, int]) -> TensorSpec:
    """Return the specification of the input of the first segment: float32 (batch, C, H, W)."""
    return TensorSpec(IMAGE, "float32", (BATCH, *input_size), "input")


def seam_specs(point: ExitPoint) -> tuple[TensorSpec, ...]:
    """Return the tensors that are alive at an exit, named as segments and heads name them."""
    names = [f"exit_{point.number:02d}"]
    if len(point.nodes) > 1:
        names = [f"{names[0]}_{index}" for index in range(len(point.nodes))]
    return tuple(TensorSpec(name, "float32", (BATCH, *shape)) for name, shape in zip(names, point.shapes, strict=True))


def node_names(points: Sequence[ExitPoint]) -> dict[str, str]:
    """Map graph nodes to the names of their tensors in ONNX, which come from the first exit where they are alive."""
    names: dict[str, str] = {}
    for point in points:
        for node, spec in zip(point.nodes, seam_specs(point), strict=True):
            names.setdefault(node, spec.name)
    return names


def aliases(points: Sequence[ExitPoint]) -> dict[str, str]:
    """Map seam tensors to their names in :func:`node_names`, for activations that are alive at several exits."""
    names = node_names(points)
    pairs = [(spec.name, names[n]) for point in points for n, spec in zip(point.nodes, seam_specs(point), strict=True)]
    return {own: first for own, first in pairs if own != first}


def answer_specs(classes: int) -> tuple[TensorSpec, ...]:
    """Return the outputs of every head: logits, confidence and label."""
    return (
        TensorSpec(LOGITS, "float32", (BATCH, classes), "answer"),
        TensorSpec(CONFIDENCE, "float32", (BATCH,), "answer"),
        TensorSpec(LABEL, "int64", (BATCH,), "answer"),
    )


def tensor_table(points: Sequence[ExitPoint], input_size: tuple[int, int, int], classes: int) -> tuple[TensorSpec, ...]:
    """Return all tensors that the pieces of a network read and write."""
    seams = {spec.name: spec for point in points for spec in seam_specs(point)}
    return (image_spec(input_size), *seams.values(), *answer_specs(classes))


def write_backbone(
    model: ir.Model,
    backbone: Backbone,
    input_size: tuple[int, int, int],
    classes: int,
    total_macs: int,
    temperature: float,
    folder: Path,
) -> list[Piece]:
    """Write the segments and, if there are several, the uncut model as a span over all of them.

    Args:
        total_macs: multiply-accumulates of the whole model for one sample.
        temperature: temperature of the final head.
        folder: folder of the bundle.

    Returns:
        the pieces written, in execution order, the uncut model last.
    """
    seams = [(image_spec(input_size),), *(seam_specs(point) for point in backbone.points)]
    macs = [0, *(point.macs for point in backbone.points), total_macs]
    last = len(backbone.points)
    pieces: list[Piece] = []
    for first, end in [*((k, k) for k in range(last + 1)), *([(0, last)] if last else [])]:
        whole = len(pieces) == last + 1
        id = UNCUT if whole else f"segment_{first:02d}"
        outputs = seams[end + 1] if end < last else (TensorSpec(LOGITS, "float32", (BATCH, classes)),)
        graph = onnx_graphs.extract(model, seams[first], outputs, aliases(backbone.points))
        if end == last:
            onnx_graphs.append_decision(graph, temperature)
            outputs = answer_specs(classes)
        role: Literal["span", "segment"] = "span" if whole else "segment"
        file = f"{role}s/{id}.onnx"
        data = _write(graph, folder, file, {"piece": id, "segments": f"{first}-{end}"})
        reads, writes = names_of(seams[first]), names_of(outputs)
        covers = tuple(piece.id for piece in pieces) if whole else ()
        pieces.append(Piece(id, role, file, reads, writes, macs[end + 1] - macs[first], data, covers))
    return pieces


def write_heads(
    backbone: Backbone, heads: Sequence[Sequence[TrainedHead]], final: Head, *, trained: bool, folder: Path
) -> tuple[list[Piece], list[Exit]]:
    """Write the heads of every exit; return their pieces and the list of exits, ending with the one of ``final``."""
    pieces: list[Piece] = []
    exits = []
    for point, of_exit, layouts in zip(backbone.points, heads, backbone.layouts, strict=True):
        pooled = tuple(
            f"axes {list(layout.pooled)} of {spec.name}, channels {layout.reason}"
            for layout, spec in zip(layouts, seam_specs(point), strict=True)
        )
        pieces += [_write_head(point, head, layouts, folder) for head in of_exit]
        entries = [
            Head(type=head.type, piece=piece.id, trained=trained, temperature=head.temperature, pooled=pooled)
            for head, piece in zip(of_exit, pieces[-len(of_exit) :], strict=True)
        ]
        exits.append(Exit(str(point.number), point.module, tuple(entries), point.number))
    return pieces, [*exits, Exit(FINAL, "the model's own classifier", (final,))]


def _write_head(point: ExitPoint, head: TrainedHead, layouts: Sequence[Layout], folder: Path) -> Piece:
    id, inputs = f"exit_{point.number:02d}_{head.type}", seam_specs(point)
    graph = onnx_graphs.mlp_head(inputs, [layout.pooled for layout in layouts], head.layers)
    onnx_graphs.append_decision(graph, head.temperature)
    file = f"heads/{id}.onnx"
    data = _write(graph, folder, file, {"piece": id, "exit": str(point.number)})
    outputs = answer_specs(len(head.layers[-1][1]))
    return Piece(id, "head", file, names_of(inputs), names_of(outputs), head.macs, data)


def names_of(specs: Sequence[TensorSpec]) -> tuple[str, ...]:
    """Return the names of tensors."""
    return tuple(spec.name for spec in specs)


def builtin_head(piece: str, temperature: float) -> Head:
    """Return the entry of the model's own classifier, which is computed at the end of a segment."""
    return Head(BUILTIN, piece, trained=True, temperature=temperature)


def _write(graph: ir.Model, folder: Path, file: str, metadata: dict[str, str]) -> tuple[str, ...]:
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    return tuple(f"{Path(file).parent.as_posix()}/{name}" for name in onnx_graphs.save(graph, path, metadata))
