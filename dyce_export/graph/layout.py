"""Which axis of an activation holds its channels, derived from the graph instead of guessed from the shape."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch.fx import Node

from dyce_export.graph.liveness import batch_axis

# Operations whose first argument (or result) has its channels on a known axis.
_CHANNELS_SECOND = {
    "conv1d",
    "conv2d",
    "conv3d",
    "convolution",
    "batch_norm",
    "_native_batch_norm_legit_no_training",
    "group_norm",
    "native_group_norm",
    "adaptive_avg_pool2d",
    "max_pool2d",
    "avg_pool2d",
    "_adaptive_avg_pool2d",
    "max_pool2d_with_indices",
    "pixel_shuffle",
    "upsample_bilinear2d",
}
_CHANNELS_LAST = {"linear", "layer_norm", "native_layer_norm", "rms_norm", "_fused_rms_norm"}
_ELEMENTWISE = {"add", "sub", "mul", "div", "addcmul"}
_MAX_STEPS = 200

_Axes: TypeAlias = tuple[int | None, ...]


@dataclass(frozen=True)
class Layout:
    """The channel axis of an activation and how it was found. Axis numbers include the batch axis, which is 0.

    Attributes:
        channel_axis: the axis of the channels.
        pooled: all axes but the batch and the channels; a head averages over them.
        reason: how the channel axis was found, in words.
    """

    channel_axis: int
    pooled: tuple[int, ...]
    reason: str


def find_layout(node: Node, shape: tuple[int, ...]) -> Layout:
    """Find the layout of an activation from the nearest operation that reads it, or else that produced it.

    Args:
        shape: the shape given by the exit point, without the batch axis; it has one axis more than the node's own
            shape if rows were folded into the batch.

    Returns:
        the layout with axes numbered as they are once the batch is moved to axis 0.
    """
    rank = node.meta["val"].ndim
    axis, reason = _search(node, forwards=True) or _search(node, forwards=False) or _assume(rank)
    if axis < (batch_axis(node) or 0):
        axis += 1
    axis, rank = axis + len(shape) + 1 - rank, len(shape) + 1
    return Layout(axis, tuple(a for a in range(1, rank) if a != axis), reason)


def _assume(rank: int) -> tuple[int, str]:
    return (1, "assumed: channels first") if rank in (2, 4) else (rank - 1, "assumed: channels last")


def _search(start: Node, *, forwards: bool) -> tuple[int, str] | None:
    """Search along operations that keep, permute or fold axes, breadth first, for one that defines the channel axis."""
    # axes[i] is the axis of the activation that became axis i of the node; None if several axes were folded into it.
    origin: _Axes = tuple(range(len(_shape(start))))
    not_channels = (None, batch_axis(start) or 0)
    queue = deque([(start, origin)])
    seen = {start}
    for _ in range(_MAX_STEPS):
        if not queue:
            break
        node, axes = queue.popleft()
        for operation in node.users if forwards else [node]:
            if operation.op != "call_function":
                continue
            found = _defines(operation, node if forwards else None, len(axes))
            if found is not None and axes[found] not in not_channels:
                return axes[found], f"{'read' if forwards else 'made'} by {_name(operation)}"  # type: ignore[return-value]
            for other in [operation] if forwards else operation.all_input_nodes:
                moved = _follow(operation, node, axes) if forwards else _follow_back(operation, other, axes)
                if other not in seen and moved is not None:
                    seen.add(other)
                    queue.append((other, moved))
    return None


def _defines(operation: Node, read: Node | None, rank: int) -> int | None:
    """Return the channel axis that ``operation`` defines for its first argument, or for its result if not ``read``."""
    name = _name(operation)
    if name in _ELEMENTWISE:
        return _scaled_axis(operation, rank)
    if read is not None and (not operation.args or operation.args[0] is not read):
        return None
    if name in _CHANNELS_SECOND:
        return 1
    if name in _CHANNELS_LAST:
        return rank - 1
    if name == "mean" and read is not None and len(operation.args) > 1:
        averaged = {axis % rank for axis in operation.args[1]}  # type: ignore[union-attr, operator]
        if len(averaged) == 1 and operation.args[2:] == (True,):  # may be a hand-written norm instead of pooling
            return None
        left = set(range(1, rank)) - averaged
        return left.pop() if len(left) == 1 else None
    return None


def _scaled_axis(operation: Node, rank: int) -> int | None:
    """Return the axis along which a per-channel parameter is applied (layer scale, a bias, an affine norm)."""
    shape = _shape(operation)
    for other in operation.all_input_nodes:
        sizes = _shape(other)
        varied = [axis - len(sizes) for axis, size in enumerate(sizes) if size != "1"]
        if other.op == "placeholder" and len(shape) == rank and len(varied) == 1:
            axis = rank + varied[0]
            if axis > 0 and sizes[varied[0]] == shape[axis]:
                return axis
    return None


def _follow(operation: Node, read: Node, axes: _Axes) -> _Axes | None:
    """Map the axes of ``read`` to the result of ``operation``; None if no correspondence can be told."""
    order = _permutation(operation, len(axes))
    if order is not None:
        return tuple(axes[o] for o in order)
    return _align(_shape(read), _shape(operation), axes)


def _follow_back(operation: Node, argument: Node, axes: _Axes) -> _Axes | None:
    """Map the axes of the result of ``operation`` to its argument; None if no correspondence can be told."""
    order = _permutation(operation, len(axes))
    if order is not None:
        return tuple(axes[order.index(i)] for i in range(len(axes)))
    return _align(_shape(operation), _shape(argument), axes)


def _permutation(operation: Node, rank: int) -> list[int] | None:
    name = _name(operation)
    if name == "permute":
        return [int(axis) % rank for axis in operation.args[1]]  # type: ignore[union-attr, arg-type]
    if name == "transpose":
        order = list(range(rank))
        a, b = (int(operation.args[i]) % rank for i in (1, 2))  # type: ignore[arg-type]
        order[a], order[b] = order[b], order[a]
        return order
    return None


def _align(before: tuple[str, ...], after: tuple[str, ...], axes: _Axes) -> _Axes | None:
    """Map axes from one shape to another: leading and trailing axes of equal size correspond."""
    if before == after:
        return axes
    shorter = min(len(before), len(after))
    head = next((i for i in range(shorter) if before[i] != after[i]), shorter)
    tail = next((i for i in range(shorter - head) if before[-1 - i] != after[-1 - i]), shorter - head)
    if head + tail < 2:
        return None
    return axes[:head] + (None,) * (len(after) - head - tail) + axes[len(axes) - tail :]


def _shape(node: Node) -> tuple[str, ...]:
    value = node.meta.get("val")
    if isinstance(value, tuple | list) and value:
        value = value[0]
    return tuple(map(str, value.shape)) if isinstance(value, torch.Tensor) else ()


def _name(operation: Node) -> str:
    target = operation.target
    return (
        target._schema.name.split("::")[-1]
        if isinstance(target, torch._ops.OpOverload)
        else getattr(target, "__name__", "")
    )
