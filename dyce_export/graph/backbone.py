"""The frozen backbone as a torch callable that also returns the activations that are alive at the chosen exits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from dyce_export.graph.capture import expose
from dyce_export.graph.exit_points import ExitPoint
from dyce_export.graph.layout import Layout, find_layout
from dyce_export.graph.liveness import batch_axis


class Backbone:
    """A captured program that is cut at exits.

    Attributes:
        points: the chosen exit points.
        layouts: for every exit, the layout of each of its activations.
        module: the graph as a module, which returns the logits and then the activations of all exits in order.
    """

    def __init__(self, program: ExportedProgram, points: Sequence[ExitPoint]) -> None:
        nodes = {node.name: node for node in program.graph.nodes}
        self.points = tuple(points)
        self.layouts: tuple[tuple[Layout, ...], ...] = tuple(
            tuple(find_layout(nodes[name], shape) for name, shape in zip(point.nodes, point.shapes, strict=True))
            for point in points
        )
        self._batch_axes = tuple(tuple(batch_axis(nodes[name]) or 0 for name in point.nodes) for point in points)
        self.module = expose(program, [name for point in points for name in point.nodes]).module(check_guards=False)

    @torch.inference_mode()
    def activations(
        self, images: Tensor, run: Callable[[Tensor], Any] | None = None
    ) -> tuple[Tensor, list[list[Tensor]]]:
        """Return logits (N, classes) and, for every exit, the activations alive there, with the batch on axis 0.

        Args:
            images: float32 (N, C, H, W).
            run: called instead of ``module``, with the same inputs and outputs.
        """
        logits, *rest = outputs if isinstance(outputs := (run or self.module)(images), tuple) else (outputs,)
        per_exit = []
        for point, axes in zip(self.points, self._batch_axes, strict=True):
            own, rest = rest[: len(point.nodes)], rest[len(point.nodes) :]
            moved = [tensor.movedim(axis, 0) for tensor, axis in zip(own, axes, strict=True)]
            per_exit.append([t.reshape(len(images), *shape) for t, shape in zip(moved, point.shapes, strict=True)])
        return logits, per_exit

    def pool(self, activations: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """Return the input features of the heads of every exit: (N, features), averaged over all but the channels."""
        return [
            torch.cat(
                [a.mean(layout.pooled) if layout.pooled else a for a, layout in zip(tensors, layouts, strict=True)], 1
            )
            for tensors, layouts in zip(activations, self.layouts, strict=True)
        ]

    def __call__(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return logits (N, classes) and, for every exit, the pooled activations (N, features)."""
        logits, activations = self.activations(images)
        return logits, self.pool(activations)
