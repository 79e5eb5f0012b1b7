"""Build ONNX graphs of the steps of an exit sequence network, one per exit.

A step reads the tensors at its exit and the keys and values of earlier tokens, and outputs its own keys and values for
later steps, as one tensor ``esn_N`` (batch, tokens, 2 x layers, width). The step at the first exit computes the saver's
token as well, so its tensor has two tokens; the others have one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from torch import Tensor, nn

from dyce_calibration.heads.sequence import ATTENTION_HEADS, ExitSequence, Layer
from dyce_export.graph.onnx_graphs import BATCH, IR_VERSION, OPSET, append_decision
from dyce_runtime.bundle.manifest import LOGITS, TensorSpec

_EPSILON = 1e-5  # of torch's layer_norm


def left_spec(network: ExitSequence, index: int) -> TensorSpec:
    """Return the spec of the keys and values that the step at exit ``index``, counted from 1, outputs."""
    tokens = 2 if index == 1 else 1
    return TensorSpec(f"esn_{index}", "float32", (BATCH, tokens, 2 * len(network.layers), network.width), "carried")


def step_inputs(
    network: ExitSequence, index: int, seam: Sequence[TensorSpec], saver: tuple[TensorSpec, TensorSpec]
) -> tuple[TensorSpec, ...]:
    """Return what the step at exit ``index``, counted from 1, reads, in order.

    That is: the tensors at the exit, the saver's logits and, if the network has layers, the keys and values of earlier
    tokens. The first step reads the saver's features instead of these, since it computes the saver's token itself.

    Args:
        seam: the tensors at the exit.
        saver: features (batch, features) and logits (batch, classes) of the saver.
    """
    features, logits = saver
    before = [left_spec(network, number) for number in range(1, index)] or [features]
    return (*seam, logits, *(before if network.layers else ()))


def sequence_step(
    network: ExitSequence,
    index: int,
    seam: Sequence[TensorSpec],
    pooled: Sequence[Sequence[int]],
    saver: tuple[TensorSpec, TensorSpec],
    temperature: float,
) -> ir.Model:
    """Build the graph of one step. Its outputs are the decision and, if the network has layers, keys and values.

    Args:
        index: number of the exit, counted from 1.
        seam, saver: see :func:`step_inputs`.
        pooled: for every tensor at the exit, the axes that are averaged.
        temperature: divisor of the logits before the softmax.
    """
    values = {spec.name: _value(spec) for spec in step_inputs(network, index, seam, saver)}
    before = [left_spec(network, number) for number in range(1, index)] if network.layers else []
    step = _Step(ir.Graph(list(values.values()), [], nodes=[], opset_imports={"": OPSET}, name="step"))
    earlier: list[ir.Value] = [values[spec.name] for spec in before]
    made: list[ir.Value] = []
    if index == 1 and network.layers:
        _, own = step.token(network, 0, values[saver[0].name], [])
        made += own
    features = step.pooled([values[spec.name] for spec in seam], pooled)
    token, own = step.token(network, index, features, [*earlier, *made])
    made += own
    logits = step.add(step.linear(network.outputs[index - 1], token), values[saver[1].name])
    step.give(logits, TensorSpec(LOGITS, "float32", (BATCH, network.classes)))
    model = ir.Model(step.graph, ir_version=IR_VERSION)
    append_decision(model, temperature)
    if made:
        whole = step.op("Concat", made, axis=1) if len(made) > 1 else made[0]
        step.give(whole, left_spec(network, index))
    return model


class _Step:
    """Appends operations to a graph."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph, self._tape, self._count = graph, ir.tape.Tape(graph), 0

    def op(self, name: str, inputs: Sequence[ir.Value], **attributes: object) -> ir.Value:
        return self._tape.op(name, list(inputs), attributes)  # type: ignore[arg-type]

    def constant(self, array: np.ndarray) -> ir.Value:
        self._count += 1
        return self._tape.initializer(ir.tensor(array, name=f"constant_{self._count}"))

    def add(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.op("Add", [a, b])

    def give(self, value: ir.Value, spec: TensorSpec) -> None:
        """Make a value an output of the graph."""
        value.name, value.dtype, value.shape = spec.name, ir.DataType.FLOAT, ir.Shape(spec.shape)
        self.graph.outputs.append(value)

    def pooled(self, values: Sequence[ir.Value], axes: Sequence[Sequence[int]]) -> ir.Value:
        """Average each tensor over its axes and concatenate the results, as other heads pool."""
        averaged = [
            self.op("ReduceMean", [value, self.constant(np.array(own, np.int64))], keepdims=0) if own else value
            for value, own in zip(values, axes, strict=True)
        ]
        return averaged[0] if len(averaged) == 1 else self.op("Concat", averaged, axis=1)

    def linear(self, module: nn.Module, value: ir.Value) -> ir.Value:
        weight, bias = module.weight, module.bias
        parts = [self.constant(_numbers(weight)), *([] if bias is None else [self.constant(_numbers(bias))])]  # type: ignore[arg-type]
        return self.op("Gemm", [value, *parts], transB=1)

    def convolved(self, module: nn.Module, value: ir.Value) -> ir.Value:
        """Apply a linear layer as a convolution.

        OpenVINO 2026.4 crashes when it fuses two linear layers and an addition for one thread.
        """
        axes, weight, bias = self.constant(np.array([2], np.int64)), module.weight, module.bias
        parts = [self.constant(_numbers(weight)[:, :, None]), self.constant(_numbers(bias))]  # type: ignore[arg-type]
        found = self.op("Conv", [self.op("Unsqueeze", [value, axes]), *parts])
        return self.op("Squeeze", [found, axes])

    def normalised(self, value: ir.Value, count: int) -> ir.Value:
        ones = self.constant(np.ones(count, np.float32))
        return self.op("LayerNormalization", [value, ones], axis=-1, epsilon=_EPSILON)

    def token(
        self, network: ExitSequence, index: int, features: ir.Value, before: Sequence[ir.Value]
    ) -> tuple[ir.Value, list[ir.Value]]:
        """Append the operations of :meth:`ExitSequence.token`.

        Args:
            index: number of the token; 0 for the saver's.
            before: keys and values of earlier tokens, each (batch, tokens, 2 x layers, width).

        Returns:
            the token (batch, width), and a list with its keys and values (batch, 1, 2 x layers, width), which is empty
            if there are no layers.
        """
        normalised = self.normalised(features, network.features[index])
        token = self.op("Relu", [self.linear(network.embeddings[index], normalised)])
        own: list[ir.Value] = []
        for number, layer in enumerate(network.layers):
            assert isinstance(layer, Layer)
            token, pair = self._layer(layer, number, token, before, network.width)
            own.append(pair)
        if not own:
            return token, []
        stacked = own[0] if len(own) == 1 else self.op("Concat", own, axis=1)  # (batch, 2 x layers, width)
        return token, [self.op("Unsqueeze", [stacked, self.constant(np.array([1], np.int64))])]

    def _layer(
        self, layer: Layer, number: int, token: ir.Value, before: Sequence[ir.Value], width: int
    ) -> tuple[ir.Value, ir.Value]:
        """Append one layer. Returns the token (batch, width) and its keys and values (batch, 2, width)."""
        parts = self.linear(layer.query_key_value, self.normalised(token, width))
        query = self._reshape(self._columns(parts, 0, width), [0, ATTENTION_HEADS, 1, -1])
        own = self._reshape(self._columns(parts, width, 3 * width), [0, 2, width])
        rows = self.constant(np.array([2 * number, 2 * number + 1], np.int64))
        known = [self.op("Gather", [earlier, rows], axis=2) for earlier in before]
        known.append(self.op("Unsqueeze", [own, self.constant(np.array([1], np.int64))]))
        whole = known[0] if len(known) == 1 else self.op("Concat", known, axis=1)  # (batch, tokens, 2, width)
        split = [0, 0, ATTENTION_HEADS, -1]
        keys, values = (
            self._reshape(self.op("Gather", [whole, self.constant(np.array(k, np.int64))], axis=2), split)
            for k in (0, 1)
        )
        scores = self.op("MatMul", [query, self.op("Transpose", [keys], perm=[0, 2, 3, 1])])
        scale = self.constant(np.array((width // ATTENTION_HEADS) ** -0.5, np.float32))
        weights = self.op("Softmax", [self.op("Mul", [scores, scale])], axis=-1)
        found = self.op("MatMul", [weights, self.op("Transpose", [values], perm=[0, 2, 1, 3])])
        token = self.add(token, self.linear(layer.attended, self._reshape(found, [0, width])))
        if layer.mlp is not None:
            wide = self.op("Relu", [self.linear(layer.mlp[0], self.normalised(token, width))])
            token = self.add(token, self.convolved(layer.mlp[2], wide))
        return token, own

    def _columns(self, value: ir.Value, start: int, end: int) -> ir.Value:
        bounds = [self.constant(np.array([n], np.int64)) for n in (start, end, 1)]
        return self.op("Slice", [value, *bounds])

    def _reshape(self, value: ir.Value, shape: Sequence[int]) -> ir.Value:
        return self.op("Reshape", [value, self.constant(np.array(shape, np.int64))])


def _value(spec: TensorSpec) -> ir.Value:
    return ir.Value(name=spec.name, shape=ir.Shape(spec.shape), type=ir.TensorType(ir.DataType.FLOAT))


def _numbers(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy()
