"""From a module to a functional graph: ``torch.export`` with a dynamic batch, in-place writes removed."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from dyce_runtime.errors import CaptureError

aten = torch.ops.aten

# A batch of one would be specialised to the constant 1.
EXAMPLE_BATCH = 2


def capture(module: nn.Module, input_size: tuple[int, int, int]) -> ExportedProgram:
    """Capture a classifier in eval mode as a functional ATen graph.

    Args:
        module: takes float32 (N, C, H, W), returns logits (N, classes).
        input_size: (C, H, W).

    Raises:
        CaptureError: the model cannot be captured; names the module and the operation where it stopped.
    """
    example = torch.randn(EXAMPLE_BATCH, *input_size, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            program = torch.export.export(module, (example,), dynamic_shapes=({0: Dim.DYNAMIC},))
    except Exception as error:  # whatever the user's forward raises while it is traced
        raise _explain(module, error) from error
    return functionalise(program)


def functionalise(program: ExportedProgram) -> ExportedProgram:
    """Rewrite in-place writes and the operations of :data:`DECOMPOSITIONS`; check input and output.

    Raises:
        CaptureError: the program does not map one image batch to one batch of logits.
    """
    program = program.run_decompositions(DECOMPOSITIONS)
    inputs, outputs = program.graph_signature.user_inputs, program.graph_signature.user_outputs
    if len(inputs) != 1 or len(outputs) != 1:
        raise CaptureError(
            f"the model takes {len(inputs)} inputs and returns {len(outputs)} outputs; "
            "expected one batch of images and one batch of logits",
            hint="Wrap it in a module whose forward(images) returns the logits alone.",
        )
    if program.graph_signature.buffers_to_mutate:
        names = ", ".join(sorted(program.graph_signature.buffers_to_mutate.values())[:3])
        raise CaptureError(f"the model writes to its own state while it runs ({names}); expected a pure function")
    structure, tensors = program.call_spec.out_spec, output_nodes(program)
    if structure is None or not structure.is_leaf() or not tensors:
        found = "no tensor" if not tensors or structure is None else f"its logits inside a {structure.type.__name__}"
        raise CaptureError(
            f"the model returns {found}; expected the logits themselves",
            hint="Wrap it in a module whose forward(images) returns the logits alone.",
        )
    logits = tensors[0].meta["val"]
    if logits.ndim != 2 or isinstance(logits.shape[0], int) or logits.dtype != torch.float32:
        raise CaptureError(
            f"the model returns {logits.dtype} of shape {tuple(logits.shape)}; "
            "expected float32 logits of shape (batch, classes)"
        )
    return program


def input_node(program: ExportedProgram) -> torch.fx.Node:
    """The placeholder of the image batch."""
    name = program.graph_signature.user_inputs[0]
    placeholders: list[torch.fx.Node] = program.graph.find_nodes(op="placeholder")
    return next(node for node in placeholders if node.name == name)


def output_nodes(program: ExportedProgram) -> list[torch.fx.Node]:
    """The nodes that the graph returns."""
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
    """Scaled dot-product attention in plain operations, for any number of leading axes."""
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    scores = (query * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)) @ key.transpose(-2, -1)
    if is_causal:
        attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        # A row without a single key is zero in torch, not 0 / 0.
        weights = scores.masked_fill(~attn_mask, -math.inf).softmax(-1).masked_fill(~attn_mask, 0)
    else:
        weights = (scores if attn_mask is None else scores + attn_mask).softmax(-1)
    return weights @ value


# The ONNX exporter fails on attention beyond four axes or under some biases (seen with torch 2.14.1).
DECOMPOSITIONS: dict[Any, Any] = {
    aten.scaled_dot_product_attention.default: _attention,
}


def _explain(module: nn.Module, error: Exception) -> CaptureError:
    """Name the innermost module and line of the model that was running when the capture stopped."""
    names = {id(child): name for name, child in module.named_modules()}
    where, trace = "", error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        owner = frame.f_locals.get("self")
        if id(owner) in names and not frame.f_code.co_filename.startswith(nn.__path__[0]):
            name = names[id(owner)] or "the model itself"
            where = f"{name} ({type(owner).__name__}, {frame.f_code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno})"
        trace = trace.tb_next
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    hint = "A forward that branches on the values of its input, or leaves torch, has to be rewritten."
    if "specialized it to be a constant" in str(error):
        hint = (
            "The forward works for one size of batch only. Read the size with x.shape[0]: len(x) makes it a constant."
        )
    return CaptureError(
        f"the model cannot be captured: {type(error).__name__}: {reason}"
        + (f"; it stopped in {where}" if where else ""),
        hint=hint,
    )
