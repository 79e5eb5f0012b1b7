"""Lowering to float16: weights and activations, with casts at the borders of the float16 part."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import onnx_ir as ir

from dyce_export.graph.joining import Network
from dyce_export.graph.onnx_graphs import OPSET

_FLOAT, _HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
_LARGEST = float(np.finfo(np.float16).max)


def halver(network: Network) -> Callable[[Sequence[str]], ir.Model]:
    """Return a function that lowers all but the given pieces to float16; images and decisions stay float32."""
    proto = onnx.shape_inference.infer_shapes(ir.to_proto(network.model))

    def halve(kept: Sequence[str]) -> ir.Model:
        model = ir.from_proto(proto)
        _Halver(model.graph, {*network.decision, *(name for id in kept for name in network.nodes[id])}).run()
        return model

    return halve


class _Halver:
    """Converts a graph in one pass, in execution order.

    Args:
        graph: the graph, whose float tensors have known types.
        kept: names of the nodes that stay in float32.
    """

    def __init__(self, graph: ir.Graph, kept: set[str]) -> None:
        self._graph, self._kept = graph, kept
        self._casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def run(self) -> None:
        """Change the graph in place. Its outputs keep their types and names."""
        returned = [(index, value, value.dtype) for index, value in enumerate(self._graph.outputs)]
        for node in list(self._graph):
            variables = _half_variables(node) if node.name not in self._kept else set()
            self._feed(node, variables)
            self._retype(node, variables)
        for index, value, dtype in returned:
            if value.dtype != dtype:
                name = value.name
                value.name = f"{name}.half"
                self._graph.outputs[index] = cast = self._cast(value, _FLOAT)
                cast.name = name
        for value in list(self._graph.initializers.values()):
            if not value.uses():
                del self._graph.initializers[str(value.name)]

    def _feed(self, node: ir.Node, variables: set[str]) -> None:
        """Cast every float input to the type that the node takes after conversion."""
        for index, value in enumerate(node.inputs):
            if value is None or value.dtype not in (_FLOAT, _HALF):
                continue
            wanted = _HALF if _formal(_schema(node).inputs, index).type_str in variables else _FLOAT
            if value.dtype != wanted:
                node.replace_input_with(index, self._cast(value, wanted))

    def _retype(self, node: ir.Node, variables: set[str]) -> None:
        if node.op_type == "Cast" and node.name not in self._kept and node.outputs[0].dtype == _FLOAT:
            node.attributes["to"] = ir.AttrInt64("to", int(_HALF))
            node.outputs[0].dtype = _HALF
        for index, value in enumerate(node.outputs):
            if value.dtype == _FLOAT and _formal(_schema(node).outputs, index).type_str in variables:
                value.dtype = _HALF

    def _cast(self, value: ir.Value, wanted: ir.DataType) -> ir.Value:
        """Return the value in another type: weights are stored converted, anything else is cast once."""
        known = self._casts.get((value, wanted))
        if known is None:
            known = self._casts[value, wanted] = self._stored(value) or self._computed(value, wanted)
        return known

    def _stored(self, value: ir.Value) -> ir.Value | None:
        if value.const_value is None or not value.is_initializer():
            return None
        array = np.clip(value.const_value.numpy(), -_LARGEST, _LARGEST).astype(np.float16)
        name = f"{value.name}.half"
        stored = ir.Value(name=name, const_value=ir.tensor(array, name=name), type=ir.TensorType(_HALF))
        stored.shape = value.shape
        self._graph.register_initializer(stored)
        return stored

    def _computed(self, value: ir.Value, wanted: ir.DataType) -> ir.Value:
        node = ir.node("Cast", [value], {"to": int(wanted)}, name=f"{value.name}.to_{wanted.name.lower()}")
        cast = node.outputs[0]
        cast.name, cast.shape, cast.dtype = f"{value.name}.{wanted.name.lower()}", value.shape, wanted
        producer = value.producer()
        if producer is None:
            self._graph.insert_before(self._graph[0], node)
        else:
            self._graph.insert_after(producer, node)
        return cast


def _half_variables(node: ir.Node) -> set[str]:
    """Return the type variables of an operator that become float16: those of its float inputs that may be float16."""
    schema = _schema(node)
    may = {c.type_param_str for c in schema.type_constraints if "tensor(float16)" in c.allowed_type_strs}
    floats = {
        _formal(schema.inputs, index).type_str
        for index, value in enumerate(node.inputs)
        if value is not None and value.dtype in (_FLOAT, _HALF)
    }
    return (may & floats) - {"T1"} if node.op_type == "Cast" else may & floats


def _schema(node: ir.Node) -> onnx.defs.OpSchema:
    return onnx.defs.get_schema(node.op_type, OPSET, node.domain)


def _formal(parameters: Sequence[onnx.defs.OpSchema.FormalParameter], index: int) -> onnx.defs.OpSchema.FormalParameter:
    """Return the formal parameter at an index; the last one may be variadic."""
    return parameters[min(index, len(parameters) - 1)]
