"""The meaning of a model's outputs. One task is supported: one label per image, from one logit per class.

Outputs of other tasks have the same shape, and a softmax turns any numbers into confidences. Therefore outputs are
refused if the graph or their values show that they mean something else.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node

from dyce_export.graph.capture import expose, output_nodes
from dyce_export.sources.places import attribute
from dyce_runtime.errors import TaskError, UsageError

log = logging.getLogger("dyce_export")

aten = torch.ops.aten

SINGLE_LABEL = "single-label"
_OTHERS = ("multi-label", "binary", "regression", "embedding", "detection", "segmentation")

_SUPPORTED = "expected one logit for each of at least 2 classes, of which one is right (single-label)"
_PROBABILITIES_WITHIN = 1e-3

# Operations that only rearrange numbers.
_ARRANGING = {
    aten.view, aten.reshape, aten._unsafe_view, aten.flatten, aten.squeeze, aten.unsqueeze, aten.permute,
    aten.transpose, aten.t, aten.contiguous, aten.clone, aten._to_copy, aten.to, aten.alias, aten.detach, aten.expand,
    aten.dropout, aten.slice, aten.select, aten.cat, aten.stack, aten.lift_fresh_copy,
}  # fmt: skip
# Those, and operations that map each number by itself.
_ELEMENTWISE = _ARRANGING | {aten.clamp, aten.clamp_min, aten.clamp_max, aten.rsub, aten.round, aten.neg}
_WITH_A_CONSTANT = {aten.mul, aten.add, aten.sub, aten.div}
_SIGMOIDS = {aten.sigmoid, aten.special_expit, aten.hardsigmoid, aten.log_sigmoid}
# Operations in a sigmoid that is written out: 1 / (1 + exp(-z)), (1 + tanh(z / 2)) / 2.
_PARTS_OF_SIGMOIDS = {aten.exp, aten.tanh}
_SOFTMAXES = {aten.softmax, aten._softmax, aten._safe_softmax}
_NORMALISING = {aten.linalg_vector_norm, aten.norm, aten.frobenius_norm}


def check_task(task: str) -> None:
    """Raise UsageError unless a task is supported."""
    if task == SINGLE_LABEL:
        return
    known = f"{task} is not supported yet" if task in _OTHERS else f"there is no task {task!r}"
    raise UsageError(f"{known}; expected {SINGLE_LABEL}: one label per picture, from one logit per class")


def check_declared(module: nn.Module) -> None:
    """Raise TaskError if a model declares another task, as models of timm and transformers can."""
    problem = attribute(module, "config", "problem_type")
    if problem in ("multi_label_classification", "regression"):
        raise TaskError(f"the model's configuration says {problem}; {_SUPPORTED}")
    if attribute(module, "num_classes") == 0:
        raise TaskError(
            f"the model was built without a classifier (num_classes is 0) and returns an embedding; {_SUPPORTED}",
            hint="Build it with its classifier.",
        )


def as_single_label(program: ExportedProgram, model: Callable[[Tensor], Tensor], images: Tensor) -> bool:
    """Make a program return logits, in place, by removing a final softmax; refuse outputs of other tasks.

    Args:
        program: returns (N, classes) float32.
        model: the model that was captured.
        images: (N, C, H, W), all different; the outputs for them show whether these are probabilities.

    Returns:
        whether a softmax was removed, so that the program no longer returns what the model does.

    Raises:
        TaskError: the outputs are not logits of one label per image; the message says what they seem to be.
    """
    logits = output_nodes(program)[0]
    classes = int(logits.meta["val"].shape[1])
    if classes < 2:
        raise TaskError(
            f"the model has one output, a single logit or a number to be predicted; {_SUPPORTED}",
            hint="Two classes from a single logit z: let the model return torch.cat([torch.zeros_like(z), z], dim=1), "
            "whose softmax is the sigmoid of z.",
        )
    if sigmoid := _find_upstream(logits, _SIGMOIDS, _ELEMENTWISE | {aten.log}):
        raise _ends_in_a_sigmoid(sigmoid)
    if norm := _normalised(logits):
        raise TaskError(
            f"the model ends in a vector of fixed length ({norm.name}), an embedding; {_SUPPORTED}",
            hint="Export the model with its classifier.",
        )
    with torch.inference_mode():
        answers = model(images)
    softmax = _find_upstream(logits, _SOFTMAXES, _ELEMENTWISE)
    if softmax is None and not _probabilities(answers):
        part = _find_upstream(logits, _PARTS_OF_SIGMOIDS, _ELEMENTWISE | {aten.reciprocal, aten.pow})
        if part is not None and ((answers >= 0) & (answers <= 1)).all():
            raise _ends_in_a_sigmoid(part)
        return False
    if softmax is not None and _remove_softmax(program, softmax, images, answers):
        log.info("the model ends in a softmax; exits and configurations work on the logits before it")
        return True
    raise TaskError(
        "the model returns probabilities, or values computed from them after a softmax, instead of logits",
        hint="Let it return what goes into the softmax.",
    )


def _ends_in_a_sigmoid(node: Node) -> TaskError:
    return TaskError(
        f"the model ends in a sigmoid ({node.name}), as for several labels per picture (multi-label) or a binary "
        f"decision; {_SUPPORTED}",
        hint="If one class is right per picture, let the model return its logits, without the sigmoid.",
    )


def _find_upstream(node: Node, wanted: set[Any], through: set[Any]) -> Node | None:
    """Search backwards from a node for an operation in ``wanted``, passing only through operations in ``through``."""
    waiting, seen = [node], set()
    while waiting:
        node = waiting.pop()
        if node in seen or node.op != "call_function":
            continue
        seen.add(node)
        kind = _kind(node)
        if kind in wanted:
            return node
        tensors = [one for one in node.all_input_nodes if one.op == "call_function"]
        if kind in through or (kind in _WITH_A_CONSTANT and through >= _ELEMENTWISE and len(tensors) == 1):
            waiting += tensors
    return None


def _kind(node: Node) -> Any:
    """Return an operation without its overload."""
    return getattr(node.target, "overloadpacket", node.target)


def _normalised(logits: Node) -> Node | None:
    """Return the norm by which the outputs are divided, if it is the norm of the outputs themselves."""
    last = logits
    while _kind(last) in _ARRANGING and last.all_input_nodes:
        last = last.all_input_nodes[0]
    if _kind(last) is not aten.div or len(last.all_input_nodes) != 2:
        return None
    value, divisor = last.all_input_nodes
    norm = _find_upstream(divisor, _NORMALISING, _ELEMENTWISE)
    return norm if norm is not None and value in norm.all_input_nodes else None


def _probabilities(answers: Tensor) -> bool:
    """Return whether all rows are non-negative and sum to 1."""
    return bool((answers >= 0).all() and ((answers.sum(1) - 1).abs() < _PROBABILITIES_WITHIN).all())


def _remove_softmax(program: ExportedProgram, softmax: Node, images: Tensor, answers: Tensor) -> bool:
    """Make a program return the input of its softmax; return whether that succeeded.

    The program is left unchanged if a softmax of that input over the classes does not equal the model's outputs.
    """
    output = program.graph.output_node()
    before, source = output.args, softmax.all_input_nodes[0]
    arranged = softmax is not output_nodes(program)[0]
    softmax.replace_all_uses_with(source)
    if not arranged:
        output.args = ((source,),)
    changed = expose(program, [])
    with torch.inference_mode():
        logits = changed.module(check_guards=False)(images)
    if logits.shape == answers.shape and torch.allclose(logits.softmax(1), answers, atol=1e-5):
        program.graph.eliminate_dead_code()
        program.graph_module.recompile()
        return True
    for user in list(source.users):
        if user is not softmax:
            user.replace_input_with(source, softmax)
    output.args = before
    expose(program, [])
    return False
