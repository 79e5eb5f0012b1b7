"""What a saver has seen of a sample, as further outputs of its last segment: for heads of the base behind it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from dyce_export.graph.onnx_graphs import BATCH
from dyce_runtime.bundle.manifest import TensorSpec
from dyce_runtime.errors import UsageError


def expose_features(graph: ir.Graph, id: str, name: str) -> tuple[TensorSpec, TensorSpec]:
    """Return the features and the logits of a saver behind its decision, in place; and how they are called.

    The features are what the classifier reads, averaged over all positions where there are several.

    Args:
        graph: of the segment in which it decides.
        id: of the saver, such as ``saver0``.
        name: of its model, for errors.

    Raises:
        UsageError: its classifier is no linear operation.
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
    """What a linear operation reads: how many features, and the axes over which they are averaged."""

    value: ir.Value
    features: int
    averaged: tuple[int, ...]


def _read_by_classifier(logits: ir.Value, name: str) -> _Read:
    """The input of the last linear operation before the logits."""
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
        f"the classifier of saver {name} is no linear layer, so there are no features for an exit sequence network",
        hint="Choose another saver, or leave out --esn.",
    )


def _read_by(node: ir.Node) -> _Read | None:
    """What a linear operation with weights of its own reads; None if it is none."""
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
