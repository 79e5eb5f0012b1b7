"""What a saver has seen of a sample, as further outputs of its last segment: for heads of the base behind it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from dyce_export.onnx_graphs import BATCH
from dyce_runtime.errors import UsageError
from dyce_runtime.manifest import TensorSpec

# Linear operations, with the axis of their first input that holds the features.
_LINEAR = {"Gemm": 1, "MatMul": -1, "Conv": 1}


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
    read, axis = _read_by_classifier(logits, name)
    assert read.shape is not None
    rank = len(read.shape)
    pooled = [k for k in range(1, rank) if k != axis % rank]
    tape = ir.tape.Tape(graph)
    if pooled:
        axes = tape.initializer(ir.tensor(np.array(pooled, np.int64), name="features_axes"))
        features = tape.op("ReduceMean", [read, axes], {"keepdims": 0})
    else:
        features = tape.op("Identity", [read])
    copied = tape.op("Identity", [logits])
    count, classes = int(read.shape[axis]), int(logits.shape[1])  # type: ignore[index, arg-type]
    specs = (
        TensorSpec(f"{id}_features", "float32", (BATCH, count)),
        TensorSpec(f"{id}_logits", "float32", (BATCH, classes)),
    )
    for value, spec in zip((features, copied), specs, strict=True):
        value.name, value.dtype, value.shape = spec.name, ir.DataType.FLOAT, ir.Shape(spec.shape)
        graph.outputs.append(value)
    return specs


def _read_by_classifier(logits: ir.Value, name: str) -> tuple[ir.Value, int]:
    """The input of the last linear operation before the logits, and the axis of the features."""
    waiting = [logits]
    while waiting:
        node = waiting.pop(0).producer()
        if node is None:
            continue
        read, *weights = (value for value in node.inputs if value is not None)
        if node.op_type in _LINEAR and weights and weights[0].is_initializer():
            return read, _LINEAR[node.op_type]
        waiting += [value for value in node.inputs if value is not None and not value.is_initializer()]
    raise UsageError(
        f"the classifier of saver {name} is no linear layer, so there are no features for an exit sequence network",
        hint="Choose another saver, or leave out --esn.",
    )
