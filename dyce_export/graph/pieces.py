"""The pieces of a bundle: segments, heads and the uncut model, cut out of one ONNX graph and written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from dyce_calibration.heads.training import TrainedHead
from dyce_export.graph import onnx_graphs
from dyce_export.graph.backbone import Backbone
from dyce_export.graph.exit_points import ExitPoint
from dyce_export.graph.layout import Layout
from dyce_export.graph.onnx_graphs import BATCH, IMAGE, LOGITS
from dyce_runtime.bundle.manifest import DECISION, FINAL, UNCUT, Exit, Head, Piece, TensorSpec


def image_spec(input_size: tuple[int, int, int]) -> TensorSpec:
    """The input of the first segment."""
    return TensorSpec(IMAGE, "float32", (BATCH, *input_size))


def seam_specs(point: ExitPoint) -> tuple[TensorSpec, ...]:
    """The tensors that are alive at an exit, as segments and heads name them."""
    names = [f"exit_{point.number:02d}"]
    if len(point.nodes) > 1:
        names = [f"{names[0]}_{index}" for index in range(len(point.nodes))]
    return tuple(TensorSpec(name, "float32", (BATCH, *shape)) for name, shape in zip(names, point.shapes, strict=True))


def node_names(points: Sequence[ExitPoint]) -> dict[str, str]:
    """Graph node to the name of its tensor in ONNX: that of the first exit at which it is alive."""
    names: dict[str, str] = {}
    for point in points:
        for node, spec in zip(point.nodes, seam_specs(point), strict=True):
            names.setdefault(node, spec.name)
    return names


def aliases(points: Sequence[ExitPoint]) -> dict[str, str]:
    """Seam tensor to the name that :func:`node_names` gives it, for activations that are alive at several exits."""
    names = node_names(points)
    pairs = [(spec.name, names[n]) for point in points for n, spec in zip(point.nodes, seam_specs(point), strict=True)]
    return {own: first for own, first in pairs if own != first}


def decision_specs(classes: int) -> tuple[TensorSpec, ...]:
    """The outputs of every head."""
    logits, confidence, label = DECISION
    return (
        TensorSpec(logits, "float32", (BATCH, classes)),
        TensorSpec(confidence, "float32", (BATCH,)),
        TensorSpec(label, "int64", (BATCH,)),
    )


def write_backbone(
    model: ir.Model,
    backbone: Backbone,
    input_size: tuple[int, int, int],
    classes: int,
    total_macs: int,
    temperature: float,
    folder: Path,
) -> list[Piece]:
    """Write the segments and the uncut model (a span over all of them, if there are several).

    Args:
        temperature: of the final head.
        folder: the bundle.
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
            outputs = decision_specs(classes)
        kind = "span" if whole else "segment"
        file = f"{kind}s/{id}.onnx"
        data = _write(graph, folder, file, {"piece": id, "segments": f"{first}-{end}"})
        pieces.append(Piece(id, kind, file, first, end, seams[first], outputs, macs[end + 1] - macs[first], data))  # type: ignore[arg-type]
    return pieces


def write_heads(
    backbone: Backbone, heads: Sequence[Sequence[TrainedHead]], *, trained: bool, folder: Path
) -> tuple[list[Piece], list[Exit]]:
    """Write the heads of every exit; returns their pieces and the list of exits, ``final`` last."""
    pieces: list[Piece] = []
    exits = []
    for index, (point, of_exit, layouts) in enumerate(zip(backbone.points, heads, backbone.layouts, strict=True)):
        pooled = tuple(
            f"axes {list(layout.pooled)} of {spec.name}, channels {layout.reason}"
            for layout, spec in zip(layouts, seam_specs(point), strict=True)
        )
        pieces += [_write_head(point, index, head, layouts, folder) for head in of_exit]
        entries = [
            Head(type=head.type, piece=piece.id, trained=trained, temperature=head.temperature, pooled=pooled)
            for head, piece in zip(of_exit, pieces[-len(of_exit) :], strict=True)
        ]
        exits.append(Exit(str(point.number), point.module, point.number, tuple(entries)))
    return pieces, [*exits, Exit(FINAL, "the model's own classifier")]


def _write_head(point: ExitPoint, index: int, head: TrainedHead, layouts: Sequence[Layout], folder: Path) -> Piece:
    id, inputs = f"exit_{point.number:02d}_{head.type}", seam_specs(point)
    graph = onnx_graphs.mlp_head(inputs, [layout.pooled for layout in layouts], head.layers)
    onnx_graphs.append_decision(graph, head.temperature)
    file = f"heads/{id}.onnx"
    data = _write(graph, folder, file, {"piece": id, "exit": str(point.number)})
    outputs = decision_specs(len(head.layers[-1][1]))
    return Piece(id, "head", file, index, index, inputs, outputs, head.macs, data)


def _write(graph: ir.Model, folder: Path, file: str, metadata: dict[str, str]) -> tuple[str, ...]:
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    return tuple(f"{Path(file).parent.as_posix()}/{name}" for name in onnx_graphs.save(graph, path, metadata))
