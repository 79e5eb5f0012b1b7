"""Where a captured program can be cut: the activations that are alive after each node."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from dyce_export.graph.capture import input_node

# A cut that carries more tensors would move more data than it saves.
MAX_LIVE = 4


def live_activations(program: ExportedProgram) -> list[tuple[Node, ...] | None]:
    """Return for every node, in order, the activations that later nodes still read once it has run.

    Only values computed from the pixels count. Values that depend on the batch size alone (an expanded class token)
    are computed again after the cut. An entry is None if no cut is possible: more than :data:`MAX_LIVE` activations
    are alive, none is, or one of them is not a float tensor with rows for each sample.
    """
    nodes = list(program.graph.nodes)
    order = {node: index for index, node in enumerate(nodes)}
    image = input_node(program)
    from_pixels = {image}
    last_use: dict[Node, int] = {}
    alive: dict[Node, None] = {}
    result: list[tuple[Node, ...] | None] = []
    for index, node in enumerate(nodes):
        if node is image or (_is_tensor_like(node) and from_pixels.intersection(node.all_input_nodes)):
            from_pixels.add(node)
            last_use[node] = max((order[user] for user in node.users), default=-1)
            alive[node] = None
        alive = {key: None for key in alive if last_use[key] > index}
        cut = tuple(alive)
        usable = 0 < len(cut) <= MAX_LIVE and all(rows_per_sample(key, image) for key in cut)
        result.append(cut if usable else None)
    return result


def _is_tensor_like(node: Node) -> bool:
    return any(True for _ in _tensors(node.meta.get("val")))


def _tensors(value: object) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)


def rows_per_sample(node: Node, image: Node) -> int | None:
    """Return how many rows of an activation belong to one sample.

    This is 1 if one axis is exactly the batch, and more if another axis was folded into axis 0 (the pixels of a
    patch, say). None if the value is not a float tensor of such a shape.
    """
    value = node.meta.get("val")
    if not (isinstance(value, torch.Tensor) and value.is_floating_point() and value.ndim >= 2):
        return None
    axis = batch_axis(node)
    if axis is None:
        return None
    rows = value.shape[axis].node.expr / image.meta["val"].shape[0].node.expr  # type: ignore[attr-defined]
    return int(rows) if rows == 1 or (rows.is_Integer and axis == 0) else None


def batch_axis(node: Node) -> int | None:
    """Return the only axis of dynamic size: 0, or another one for sequences before the batch, (L, N, C); else None."""
    axes = [axis for axis, size in enumerate(node.meta["val"].shape) if not isinstance(size, int)]
    return axes[0] if len(axes) == 1 else None
