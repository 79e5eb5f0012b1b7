"""Add a saver's features and logits to the outputs of its last segment, for an exit sequence network to read."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from dyce_export.graph.onnx_graphs import BATCH
from dyce_runtime.bundle.manifest import TensorSpec
from dyce_runtime.errors import UsageError


def expose_features(graph: ir.Graph, id: str, name: str) -> tuple[TensorSpec, TensorSpec]:
    """Append the features and the logits of a saver to the outputs of a graph, in place, and return their specs.

    The features are the input of the saver's classifier, averaged over all positions if it has several.

    Args:
        graph: the saver's last segment, with the logits as its first output.
        id: id of the saver, such as ``saver0``.
        name: name of its model, for errors.

    Returns:
        the specs of the features (batch, features) and of the logits (batch, classes), both float32.

    Raises:
        UsageError: the classifier is not a linear operation.
    """
    logits = graph.outputs[0]
    read = _read_by_classifier(logits, name)
    tape = ir.tape.Tape(graph)
    if read.averaged:
        axes = tape.initializer(ir.tensor(np.array(read.averaged, np.int64), name="features_axes"))
        features = tape.op("ReduceMean", [read.value, axes], {"keepdims": 0})
    else:
        features = tape.op("Identity", [read.value])
    specs = (
        TensorSpec(f"{id}_features", "float32", (BATCH, read.features), "carried"),
        TensorSpec(f"{id}_logits", "float32", (BATCH, int(logits.shape[1])), "carried"),  # type: ignore[index, arg-type]
    )
    copied = tape.op("Identity", [logits])
    for value, spec in zip((features, copied), specs, strict=True):
        value.name, value.dtype, value.shape = spec.name, ir.DataType.FLOAT, ir.Shape(spec.shape)
        graph.outputs.append(value)
    return specs


class _Read(NamedTuple):
    """The input of a linear operation.

    Attributes:
        features: their number.
        averaged: axes over which the value is averaged.
    """

    value: ir.Value
    features: int
    averaged: tuple[int, ...]


def _read_by_classifier(logits: ir.Value, name: str) -> _Read:
    """Find the input of the last linear operation before the logits, searching backwards breadth first."""
    waiting = [logits]
    while waiting:
        node = waiting.pop(0).producer()
        if node is None:
            continue
        found = _read_by(node)
        if found is not None:
            return found
        waiting += [value for value in node.inputs if value is not None and not value.is_initializer()]
    raise UsageError(
        f"the classifier of saver {name} is not a linear layer, so there are no features for an exit sequence network",
        hint="Choose another saver, or leave out --esn.",
    )


def _read_by(node: ir.Node) -> _Read | None:
    """Return the input of a linear operation with constant weights; None if the node is something else."""
    value, weight, *_ = (*node.inputs, None, None)
    if value is None or weight is None or weight.shape is None or not weight.is_initializer():
        return None
    sizes = [int(size) for size in weight.shape]
    if node.op_type == "Gemm":
        transposed = "transB" in node.attributes and node.attributes["transB"].as_int() == 1
        return _Read(value, sizes[1] if transposed else sizes[0], ())
    if node.op_type == "Conv":
        groups = node.attributes["group"].as_int() if "group" in node.attributes else 1
        return _Read(value, sizes[1] * groups, tuple(range(2, len(sizes))))
    if node.op_type == "MatMul" and value.shape is not None:
        return _Read(value, sizes[-2], tuple(range(1, len(value.shape) - 1)))
    return None
