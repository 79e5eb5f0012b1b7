"""Capture a module as a functional graph: ``torch.export`` with a dynamic batch axis, without in-place writes."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.export.graph_signature import OutputKind, OutputSpec, TensorArgument
from torch.fx import Node
from torch.utils import _pytree as pytree

from dyce_export.graph.regions import write_out_regions
from dyce_export.sources.answers import answer, answering, check_inputs, check_logits, pick
from dyce_export.sources.places import place_of_error, place_of_node, reason_of, shortened
from dyce_export.sources.quiet import quiet
from dyce_runtime.errors import CaptureError, DyceError

aten = torch.ops.aten
log = logging.getLogger("dyce_export")

# torch.export would specialise a batch of one to the constant 1.
EXAMPLE_BATCH = 2
NORM_HINT = "A norm has to use statistics from the training: BatchNorm with track_running_stats=True, in eval mode."


def capture(module: nn.Module, input_size: tuple[int, int, int]) -> ExportedProgram:
    """Capture a classifier in eval mode as a functional ATen graph that returns its logits alone.

    Args:
        module: takes float32 images of shape (N, C, H, W), returns logits of shape (N, classes), or a container that
            holds them.
        input_size: (C, H, W).

    Raises:
        CaptureError: the model cannot be captured; the message names the module and the operation that failed.
    """
    check_inputs(module)
    example = torch.randn(EXAMPLE_BATCH, *input_size, generator=torch.Generator().manual_seed(0))
    answer(module, example)  # its error messages are clearer than those of torch.export
    shapes = ShapesCollection()  # type: ignore[no-untyped-call]
    shapes[example] = {0: Dim.DYNAMIC}
    try:
        with answering(module):
            program = torch.export.export(module, (example,), dynamic_shapes=shapes)
    except DyceError:
        raise
    except Exception as error:  # whatever the user's forward raises while it is traced
        raise _explain(module, error) from error
    return functionalise(program)


def functionalise(program: ExportedProgram) -> ExportedProgram:
    """Rewrite a program into pure operations that map one batch of images to one batch of logits.

    In-place writes, regions and the operations in :data:`DECOMPOSITIONS` are replaced by other operations. Whatever
    the logits do not depend on is removed.

    Raises:
        CaptureError: the program does not map one batch of images to one batch of logits, or is not deterministic.
    """
    write_out_regions(program)
    try:
        with quiet():
            program = program.run_decompositions(DECOMPOSITIONS)
    except Exception as error:  # as torch.export
        raise CaptureError(f"the captured graph cannot be made functional: {reason_of(error)}") from error
    inputs = program.graph_signature.user_inputs
    if len(inputs) != 1:
        raise CaptureError(f"the model takes {len(inputs)} inputs; expected one, a batch of images")
    _keep_batch_of_one(program)
    _return_logits_alone(program)
    _check_no_branches(program)
    _check_no_randomness(program)
    return program


def _return_logits_alone(program: ExportedProgram) -> None:
    """Drop all outputs but the logits, writes to state that no output reads, and everything only they need."""
    structure, specs = program.call_spec.out_spec, program.graph_signature.output_specs
    assert structure is not None
    outputs = zip(specs, program.graph.output_node().args[0], strict=True)
    nodes = [node for spec, node in outputs if spec.kind == OutputKind.USER_OUTPUT]
    values = [node.meta["val"] if isinstance(node, Node) else node for node in nodes]
    value = pick(pytree.tree_unflatten(values, structure))
    check_logits(value, input_node(program).meta["val"])
    logits = next(node for node in nodes if isinstance(node, Node) and node.meta["val"] is value)
    _check_state(program, logits)
    program.graph.output_node().args = ((logits,),)
    expose(program, [])
    program.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    _without_copies(program)
    program.graph_module.recompile()


def _check_state(program: ExportedProgram, logits: Node) -> None:
    """Raise CaptureError if the logits depend on parameters or buffers that the forward writes to."""
    signature = program.graph_signature
    written = {**signature.buffers_to_mutate, **signature.parameters_to_mutate}
    if not written:
        return
    holders = {**signature.inputs_to_buffers, **signature.inputs_to_parameters}
    needed = _ancestors(logits)
    read = {holders[node.name] for node in needed if node.name in holders}
    for node in program.graph.nodes:
        name = written.get(node.name)
        if name not in read:
            continue
        norm = next((other for other in node.all_input_nodes if "batch_norm" in str(other.target)), None)
        if norm is not None:
            raise CaptureError(
                f"a picture's answer depends on the other pictures of its batch: {place_of_node(norm)} is a batch norm "
                "in training mode",
                hint=NORM_HINT,
            )
        raise CaptureError(
            f"the model's answers depend on what it has seen before: its forward reads and writes {name}; expected the "
            "same answer for the same picture",
            hint="Write to parameters and buffers in training mode only: if self.training: ...",
        )
    names = shortened(", ".join(sorted(written.values())))
    log.info("the forward writes to %s, on which no output depends; these writes are left out", names)


def _ancestors(node: Node) -> set[Node]:
    """Return the node and all nodes that it is computed from."""
    found, open = {node}, [node]
    while open:
        new = [other for other in open.pop().all_input_nodes if other not in found]
        found.update(new)
        open += new
    return found


def _without_copies(program: ExportedProgram) -> None:
    """Replace copies of the image by the image itself: in a functional graph they are equal."""
    image = input_node(program)
    for node in list(image.users):
        if node.target is aten.clone.default:
            node.replace_all_uses_with(image)
            program.graph.erase_node(node)


def _keep_batch_of_one(program: ExportedProgram) -> None:
    """Restrict squeeze() to the axes whose size is always 1, so that a batch of one image keeps its batch axis."""
    for node in list(program.graph.nodes):
        if node.target not in (aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims):
            continue
        read = node.args[0]
        shape = read.meta["val"].shape
        named = pytree.tree_leaves(node.args[1:]) or range(len(shape))
        axes = [axis % len(shape) for axis in named]
        always = [axis for axis in axes if isinstance(shape[axis], int) and shape[axis] == 1]
        if not always:
            node.replace_all_uses_with(read)
            program.graph.erase_node(node)
        elif len(always) < len(axes):
            node.target, node.args = aten.squeeze.dims, (read, always)
    program.graph_module.recompile()


def _check_no_branches(program: ExportedProgram) -> None:
    """Raise CaptureError for nested graphs, such as those of ``torch.cond``: they can be neither cut nor counted."""
    for node in program.graph.nodes:
        if isinstance(node.target, HigherOrderOperator):
            operation = str(node.target.name())  # type: ignore[no-untyped-call]
            raise CaptureError(
                f"the model decides while it runs what it computes: {operation} in {place_of_node(node)}; "
                "expected the same operations for every picture",
                hint="Compute both ways and take one with torch.where, or unroll the loop.",
            )


def _check_no_randomness(program: ExportedProgram) -> None:
    for node in program.graph.nodes:
        operation = node.target
        if not isinstance(operation, torch._ops.OpOverload) or torch.Tag.nondeterministic_seeded not in operation.tags:
            continue
        given = _arguments(node)
        on = given.get("train", given.get("training", True))
        if on and given.get("p") != 0:
            raise CaptureError(
                f"the model's answers are random: {operation._schema.name.split('::')[-1]} in {place_of_node(node)}; "
                "expected the same answer for the same input",
                hint="Draw random numbers in training only: nn.Dropout, F.dropout(x, p, self.training), "
                "if self.training: ...",
            )


def _arguments(node: Node) -> dict[str, Any]:
    """Return the arguments of an operation by name, defaults included."""
    arguments = node.target._schema.arguments  # type: ignore[union-attr]
    given = {argument.name: argument.default_value for argument in arguments if argument.has_default_value()}
    return {**given, **dict(zip((a.name for a in arguments), node.args, strict=False)), **node.kwargs}


def expose(program: ExportedProgram, activations: Sequence[str]) -> ExportedProgram:
    """Make a program return the logits followed by the named activations, in place; return the same program."""
    by_name: dict[str, Node] = {node.name: node for node in program.graph.nodes}
    output = program.graph.output_node()
    outputs: list[Node] = [output.args[0][0], *(by_name[name] for name in activations)]
    output.args = (tuple(outputs),)
    program.graph_module.recompile()
    program.graph_signature.output_specs = [
        OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(name=node.name), target=None) for node in outputs
    ]
    root = program.module_call_graph[0].signature
    assert root is not None
    root.out_spec = pytree.tree_structure(tuple(outputs) if activations else outputs[0])
    root.outputs = [TensorArgument(name=node.name) for node in outputs]
    return program


def input_node(program: ExportedProgram) -> torch.fx.Node:
    """Return the placeholder of the image batch."""
    name = program.graph_signature.user_inputs[0]
    placeholders: list[torch.fx.Node] = program.graph.find_nodes(op="placeholder")
    return next(node for node in placeholders if node.name == name)


def output_nodes(program: ExportedProgram) -> list[torch.fx.Node]:
    """Return the nodes that the graph returns."""
    return [node for node in program.graph.output_node().args[0] if isinstance(node, torch.fx.Node)]


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Compute scaled dot-product attention with plain operations, for any number of leading axes."""
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    scores = (query * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)) @ key.transpose(-2, -1)
    if is_causal:
        attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        # torch returns zeros, not 0 / 0, for a query that may attend to no key.
        weights = scores.masked_fill(~attn_mask, -math.inf).softmax(-1).masked_fill(~attn_mask, 0)
    else:
        weights = (scores if attn_mask is None else scores + attn_mask).softmax(-1)
    if dropout_p > 0:  # keep the randomness of the replaced operation, which _check_no_randomness reports
        weights = torch.dropout(weights, dropout_p, train=True)
    return weights @ value


# The ONNX exporter fails on attention with more than four axes or with some biases (seen with torch 2.14.1).
DECOMPOSITIONS: dict[Any, Any] = {
    aten.scaled_dot_product_attention.default: _attention,
}


def _explain(module: nn.Module, error: Exception) -> CaptureError:
    """Return an error that names the innermost module and the line of the model where the capture stopped."""
    where, _ = place_of_error(module, error)
    hint = "A forward that branches on the values of its input, or leaves torch, has to be rewritten."
    if "specialized it to be a constant" in str(error):
        hint = (
            "The forward works for one size of batch only. Read the size with x.shape[0]: len(x) makes it a constant."
        )
    elif "fake tensor" in str(error):
        hint = "Its forward changes weights or hides tensors from the graph: look for .data and .detach()."
    return CaptureError(
        f"the model cannot be captured: {reason_of(error)}" + (f"; it stopped in {where}" if where else ""), hint=hint
    )
