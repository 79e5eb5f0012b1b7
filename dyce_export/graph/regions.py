"""Inline the regions of a captured graph, such as ``with torch.autocast(...)``, if they have no effect.

``torch.export`` turns a region into one node whose operations form a nested graph. Whether gradients are enabled
never matters here; autocast matters only if it is enabled for the CPU.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from dyce_export.sources.places import place_of_node
from dyce_runtime.errors import CaptureError

_GRAD = torch.ops.higher_order.wrap_with_set_grad_enabled
_AUTOCAST = torch.ops.higher_order.wrap_with_autocast


def write_out_regions(program: ExportedProgram) -> None:
    """Replace every region of a program by its operations, in place.

    Raises:
        CaptureError: a region computes in a precision other than float32.
    """
    _write_out(program.graph_module)


def _write_out(module: GraphModule) -> None:
    regions = [node for node in module.graph.nodes if node.op == "call_function" and node.target in (_GRAD, _AUTOCAST)]
    for node in regions:
        body, given = _body(node)
        inner = getattr(module, str(body.target))
        _check_precision(node, inner)
        _write_out(inner)
        placeholders = inner.graph.find_nodes(op="placeholder")
        with module.graph.inserting_before(node):
            made = module.graph.graph_copy(inner.graph, dict(zip(placeholders, given, strict=True)))
        for user in list(node.users):  # a region returns a tuple
            assert user.target is operator.getitem
            user.replace_all_uses_with(made[user.args[1]])  # type: ignore[index]
            module.graph.erase_node(user)
        module.graph.erase_node(node)
        if not body.users:
            module.graph.erase_node(body)
    if regions:
        module.recompile()


def _body(region: Node) -> tuple[Node, tuple[Any, ...]]:
    """Return the node that holds the region's graph, and the arguments passed to that graph."""
    index = next(i for i, arg in enumerate(region.args) if isinstance(arg, Node) and arg.op == "get_attr")
    return region.args[index], region.args[index + 1 :]  # type: ignore[return-value]


def _check_precision(region: Node, inner: GraphModule) -> None:
    if region.target is not _AUTOCAST:
        return
    device, dtype, enabled = region.args[:3]
    if device != "cpu" or not enabled or dtype == torch.float32:
        return
    inside = next((node for node in inner.graph.nodes if node.op == "call_function"), region)
    raise CaptureError(
        f"the forward turns on autocast to {str(dtype).removeprefix('torch.')} on the CPU, in {place_of_node(inside)}; "
        "expected float32",
        hint="Leave autocast to the training loop, or turn it off for inference; --precision lowers the bundle.",
    )
