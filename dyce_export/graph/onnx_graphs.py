"""ONNX: export the captured program as one graph, and cut pieces out of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch.export import ExportedProgram

from dyce_export.graph.capture import EXAMPLE_BATCH, expose, input_node
from dyce_export.sources.places import place_of_node, reason_of
from dyce_export.sources.quiet import quiet
from dyce_runtime.bundle.manifest import CONFIDENCE, LABEL, LOGITS, TensorSpec
from dyce_runtime.errors import CaptureError

# Old enough for TensorRT 10.3, the oldest engine that reads our pieces (see docs/decisions).
OPSET = 18
IR_VERSION = 10
IMAGE = "image"
BATCH = "batch"
# A protocol buffer holds at most 2 GiB; larger weights go to a file of their own.
EXTERNAL_DATA_BYTES = 1 << 30
# The exporter's messages for an operation that it does not know, and for a node that it could not translate.
_UNKNOWN = re.compile(
    r"No ONNX function found for <OpOverload\(op='(?P<name>[^']+)', overload='(?P<overload>[^']+)'\)>"
)
_TRANSLATED = re.compile(r"translating node %(?P<node>\w+)")
_REPLACE = "Replace that operation in the model by others with the same result."


def to_onnx(program: ExportedProgram, names: Mapping[str, str]) -> ir.Model:
    """Export the whole program as ONNX; the graph returns the logits and the activations in ``names``.

    Args:
        names: graph node to the name of its activation in the ONNX graph.

    Raises:
        CaptureError: an operation has no ONNX form; the message names it and its module.
    """
    expose(program, list(names))
    image = input_node(program).meta["val"]
    example = torch.zeros(EXAMPLE_BATCH, *image.shape[1:])
    try:
        with quiet():
            exported = torch.onnx.export(
                program,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[IMAGE],
                output_names=[LOGITS, *names.values()],
                verbose=False,
            )
    except Exception as error:  # the exporter wraps whatever its operators raise
        raise _explain(program, error) from error
    assert exported is not None
    model = exported.model
    _check_operations(model, program, names)
    model.ir_version = IR_VERSION
    _register_constants(model.graph)
    _name_batch_axis(model.graph, str(image.shape[0]))
    _read_shapes_from_image(model.graph)
    if input_node(program).name in names:
        _carry_image(model.graph, names[input_node(program).name])
    return model


def extract(
    model: ir.Model,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    aliases: Mapping[str, str] = MappingProxyType({}),
) -> ir.Model:
    """Return the part of ``model`` between named tensors as a model of its own, which shares the weights.

    If the part reads the batch size from the image, it reads it from its own first input instead.

    Args:
        aliases: names in ``model`` of those tensors of ``inputs`` and ``outputs`` that are called differently there.

    Raises:
        CaptureError: the outputs depend on something other than ``inputs``.
    """
    wanted, made = ([aliases.get(spec.name, spec.name) for spec in specs] for specs in (inputs, outputs))
    graph = ir.convenience.extract(model.graph, list(dict.fromkeys([*wanted, IMAGE])), made)
    _copy_passed_through(graph)
    for index, spec in enumerate(inputs):
        _batch_back(graph, index, spec)
        _fold_input(graph, index, spec)
    for index, spec in enumerate(outputs):
        _batch_first(graph, index, spec)
        _unfold_output(graph, index, spec)
    if IMAGE not in wanted:
        _drop_image(graph, graph.inputs[0])
    for value, spec in zip([*graph.inputs, *graph.outputs], [*inputs, *outputs], strict=True):
        value.name, value.shape = spec.name, ir.Shape(spec.shape)
        value.dtype = ir.DataType.from_numpy(np.dtype(spec.dtype))
    for name in sorted(graph.initializers):  # their order is arbitrary; sorted, equal exports give equal bytes
        graph.initializers[name] = graph.initializers.pop(name)
    return ir.Model(graph, ir_version=IR_VERSION)


def _copy_passed_through(graph: ir.Graph) -> None:
    """Copy inputs that are also outputs of a piece: not every engine can return an input unchanged."""
    for index, value in enumerate(graph.outputs):
        if value in graph.inputs:
            node = ir.node("Identity", [value])
            node.outputs[0].shape, node.outputs[0].type = value.shape, value.type
            graph.append(node)
            graph.outputs[index] = node.outputs[0]


def _batch_back(graph: ir.Graph, index: int, spec: TensorSpec) -> None:
    """If the graph works on a batch that is not the first axis, (L, N, C), read (N, L, C) and move the axis."""
    moved = graph.inputs[index]
    axis = _batch_axis(moved)
    if axis == 0:
        return
    whole = ir.Value(name=spec.name, type=moved.type, shape=ir.Shape(spec.shape))
    moved.name = f"{spec.name}_moved"
    graph.inputs[index] = whole
    node = ir.node("Transpose", [whole], {"perm": [*range(1, axis + 1), 0, *range(axis + 1, len(spec.shape))]})
    node.outputs[0].shape, node.outputs[0].type = moved.shape, moved.type
    ir.convenience.replace_all_uses_with(moved, node.outputs[0])
    graph.insert_before(graph[0], node)


def _batch_first(graph: ir.Graph, index: int, spec: TensorSpec) -> None:
    """Move the batch back to the first axis at the end of a piece."""
    moved = graph.outputs[index]
    axis = _batch_axis(moved)
    if axis == 0:
        return
    moved.name = f"{spec.name}_moved"
    node = ir.node("Transpose", [moved], {"perm": [axis, *(i for i in range(len(spec.shape)) if i != axis)]})
    node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = spec.name, moved.type, ir.Shape(spec.shape)
    graph.append(node)
    graph.outputs[index] = node.outputs[0]


def _batch_axis(value: ir.Value) -> int:
    sizes = [] if value.shape is None else list(map(str, value.shape))
    return sizes.index(BATCH) if BATCH in sizes else 0


def _fold_input(graph: ir.Graph, index: int, spec: TensorSpec) -> None:
    """If the graph works on several rows per sample, read (batch, rows, ...) and fold the rows into the batch."""
    folded = graph.inputs[index]
    if folded.shape is None or len(folded.shape) == len(spec.shape):
        return
    whole = ir.Value(name=spec.name, type=folded.type)
    folded.name = f"{spec.name}_rows"
    graph.inputs[index] = whole
    node = _reshape(graph, whole, spec.shape[2:])
    ir.convenience.replace_all_uses_with(folded, node.outputs[0])
    graph.insert_before(graph[0], node)


def _unfold_output(graph: ir.Graph, index: int, spec: TensorSpec) -> None:
    """Give rows that were folded into the batch their own axis again at the end of a piece."""
    folded = graph.outputs[index]
    if folded.shape is None or len(folded.shape) == len(spec.shape):
        return
    folded.name = f"{spec.name}_rows"
    node = _reshape(graph, folded, spec.shape[1:])
    node.outputs[0].name = spec.name
    graph.append(node)
    graph.outputs[index] = node.outputs[0]


def _reshape(graph: ir.Graph, value: ir.Value, rest: Sequence[int | str]) -> ir.Node:
    """Return a node that reshapes ``value`` to (-1, *rest)."""
    shape = np.array([-1, *rest], np.int64)
    constant = ir.Value(name=f"{value.name}_shape", const_value=ir.tensor(shape, name=f"{value.name}_shape"))
    constant.shape, constant.dtype = ir.Shape(shape.shape), ir.DataType.INT64
    graph.register_initializer(constant)
    return ir.node("Reshape", [value, constant])


def append_decision(model: ir.Model, temperature: float) -> None:
    """Add the outputs ``confidence`` (B,) and ``label`` (B,) to a graph that returns logits (B, C), in place.

    confidence = max softmax(logits / temperature), float32; label = argmax, int64. The logits stay unscaled.
    """
    graph = model.graph
    tape = ir.tape.Tape(graph)
    logits = scaled = graph.outputs[0]
    if temperature != 1.0:
        divisor = tape.initializer(ir.tensor(np.float32(temperature), name="temperature"))
        scaled = tape.op("Div", [logits, divisor])
    probabilities = tape.op("Softmax", [scaled], {"axis": -1})
    axes = tape.initializer(ir.tensor(np.array([-1], np.int64), name="class_axis"))
    confidence = tape.op("ReduceMax", [probabilities, axes], {"keepdims": 0}, name="confidence")
    label = tape.op("ArgMax", [scaled], {"axis": -1, "keepdims": 0}, name="label")
    for value, dtype, name in ((confidence, ir.DataType.FLOAT, CONFIDENCE), (label, ir.DataType.INT64, LABEL)):
        value.name, value.dtype, value.shape = name, dtype, ir.Shape([BATCH])
        graph.outputs.append(value)


def mlp_head(
    inputs: Sequence[TensorSpec], pooled: Sequence[Sequence[int]], layers: Sequence[tuple[np.ndarray, np.ndarray]]
) -> ir.Model:
    """Build a head: average every input over its ``pooled`` axes, concatenate, apply linear layers with ReLU between.

    Args:
        layers: weight (out, in) and bias (out,) of each linear layer, float32.
    """
    values = [ir.Value(name=s.name, shape=ir.Shape(s.shape), type=ir.TensorType(ir.DataType.FLOAT)) for s in inputs]
    graph = ir.Graph(values, [], nodes=[], opset_imports={"": OPSET}, name="head")
    tape = ir.tape.Tape(graph)
    features = []
    for index, (value, axes) in enumerate(zip(values, pooled, strict=True)):
        if axes:
            constant = tape.initializer(ir.tensor(np.array(axes, np.int64), name=f"pooled_axes_{index}"))
            value = tape.op("ReduceMean", [value, constant], {"keepdims": 0})
        features.append(value)
    hidden = tape.op("Concat", features, {"axis": 1}) if len(features) > 1 else features[0]
    for index, (weight, bias) in enumerate(layers):
        if index:
            hidden = tape.op("Relu", [hidden])
        parameters = [
            tape.initializer(ir.tensor(array, name=f"layer{index}.{name}"))
            for name, array in (("weight", weight), ("bias", bias))
        ]
        hidden = tape.op("Gemm", [hidden, *parameters], {"transB": 1})
    hidden.name, hidden.dtype, hidden.shape = LOGITS, ir.DataType.FLOAT, ir.Shape([BATCH, len(layers[-1][1])])
    graph.outputs.append(hidden)
    return ir.Model(graph, ir_version=IR_VERSION)


def pooled_axes(head: ir.Model) -> list[list[int]]:
    """Return for every input of a head the axes over which it averages."""
    found = []
    for value in head.graph.inputs:
        (reader,) = value.consumers()
        axes = reader.inputs[1] if reader.op_type == "ReduceMean" else None
        assert axes is None or axes.const_value is not None
        found.append([] if axes is None else [int(axis) for axis in axes.const_value.numpy()])  # type: ignore[union-attr]
    return found


def save(model: ir.Model, path: Path, metadata: Mapping[str, str]) -> list[str]:
    """Write a piece with its metadata; return the names of additional files beside it (external weights)."""
    model.producer_name = "dyce-export"
    model.metadata_props.update({f"dyce.{key}": value for key, value in metadata.items()})
    # The exporter's metadata is large and contains paths of this machine.
    model.graph.metadata_props.clear()
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
    made = (output for node in model.graph for output in node.outputs)
    for value in (*model.graph.inputs, *model.graph.initializers.values(), *made):
        value.metadata_props.clear()
    external = None if fits_in_one_file(model) else f"{path.name}.data"
    ir.save(model, path, external_data=external)
    return [external] if external else []


def fits_in_one_file(model: ir.Model) -> bool:
    """Return whether a model fits into one protocol buffer together with its weights."""
    weights = (value.const_value for value in model.graph.initializers.values())
    return sum(weight.nbytes for weight in weights if weight is not None) <= EXTERNAL_DATA_BYTES


def _register_constants(graph: ir.Graph) -> None:
    """Register constants of a fused Clip that onnxscript 0.7's optimiser does not list in the graph.

    It omits them if one tensor is clamped several times.
    """
    for value in [value for node in graph for value in node.inputs if value is not None]:
        listed = value.producer() is not None or value.is_initializer() or value.is_graph_input()
        if not listed and value.const_value is not None:
            graph.register_initializer(value)


def _name_batch_axis(graph: ir.Graph, symbol: str) -> None:
    for value in [*graph.inputs, *(output for node in graph for output in node.outputs)]:
        if value.shape is not None:
            value.shape = ir.Shape([BATCH if str(dim) == symbol else dim for dim in value.shape])


def _read_shapes_from_image(graph: ir.Graph) -> None:
    """Redirect every read of the batch size to the image, so that no shape has to be carried across a cut."""
    image = graph.inputs[0]
    for node in graph:
        if node.op_type == "Shape" and node.inputs[0] is not image:
            shape, ends = node.inputs[0].shape, [node.attributes.get(key) for key in ("start", "end")]  # type: ignore[union-attr]
            if shape is not None and str(shape[0]) == BATCH and [a.as_int() for a in ends if a] == [0, 1]:
                node.replace_input_with(0, image)


def _carry_image(graph: ir.Graph, name: str) -> None:
    """If the image is alive at a cut, let all its readers use the output that carries it across the cut instead."""
    image = graph.inputs[0]
    carried = next(value for value in graph.outputs if value.name == name)
    carrier = carried.producer()
    assert carrier is not None
    for node in list(image.consumers()):
        if node is not carrier and node.op_type != "Shape":
            for index, value in enumerate(node.inputs):
                if value is image:
                    node.replace_input_with(index, carried)
    graph.remove(carrier)
    graph.insert_before(graph[0], carrier)


def _drop_image(graph: ir.Graph, own: ir.Value) -> None:
    """Read the batch size from ``own`` instead of the image, and remove the image from the inputs."""
    image = next((value for value in graph.inputs if value.name == IMAGE), None)
    if image is None:
        return
    for node in list(image.consumers()):
        first = [node.attributes[key].as_int() for key in ("start", "end") if key in node.attributes]
        if node.op_type != "Shape" or first != [0, 1]:
            raise CaptureError(f"the graph after {own.name} still reads the image, in {node.name} ({node.op_type})")
        node.replace_input_with(0, own)
    graph.inputs.remove(image)


def _check_operations(model: ir.Model, program: ExportedProgram, names: Mapping[str, str]) -> None:
    """Raise CaptureError for an operation that is newer than the opset that the exporter was asked for."""
    activations = {name: node for node, name in names.items()}
    for node in model.graph.all_nodes():
        if node.domain or onnx.defs.has(node.op_type, max_inclusive_version=OPSET):
            continue
        history = onnx.defs.get_all_schemas_with_history()
        since = min(schema.since_version for schema in history if schema.name == node.op_type)
        made = str(node.outputs[0].name)
        place = _place_in(program, activations.get(made, made))
        raise CaptureError(
            f"the model cannot be written as ONNX: {node.op_type}{place} came with opset {since}; expected "
            f"operations of opset {OPSET}, which older engines read, too",
            hint=_REPLACE,
        )


def _explain(program: ExportedProgram, error: Exception) -> CaptureError:
    """Return an error that names the operation without an ONNX form and its place in the model."""
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    said = "\n".join(map(str, causes))
    if unknown := _UNKNOWN.search(said):
        # The exporter may report the decomposed operation: prims.hypot for aten.hypot.
        named = f".{unknown['name'].rsplit('.', 1)[-1]}."
        nodes = (node.name for node in program.graph.nodes if named in f".{node.target}.")
        reason = (
            f"there is no ONNX form of {unknown['name']}.{unknown['overload']}{_place_in(program, next(nodes, ''))}"
        )
    else:
        translated = _TRANSLATED.search(said)
        reason = reason_of(causes[-1]) + (_place_in(program, translated["node"]) if translated else "")
    return CaptureError(f"the model cannot be written as ONNX: {reason}", hint=_REPLACE)


def _place_in(program: ExportedProgram, name: str) -> str:
    """Describe the place of a node; empty if no node has that name."""
    node = next((node for node in program.graph.nodes if node.name == name), None)
    return "" if node is None else f" in {place_of_node(node)}"
