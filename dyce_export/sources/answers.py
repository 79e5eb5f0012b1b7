"""Extract one row of logits per image from whatever a forward returns, or say why there is none."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dyce_export.sources.places import attribute, place_of_error, reason_of, shortened
from dyce_export.sources.quiet import quiet
from dyce_runtime.errors import CaptureError, DyceError

WRAP_HINT = "Wrap it in a module whose forward(images) returns the logits alone."
_LOGITS = "logits"
_BOXES = {"boxes", "pred_boxes", "bboxes", "masks", "pred_masks", "keypoints"}
_TOKENS = {"input_ids", "inputs_embeds", "token_ids", "tokens", "text"}


def answer(module: nn.Module, images: Tensor) -> Tensor:
    """Run a model on a copy of a batch and return its logits (N, classes).

    Raises:
        CaptureError: the model fails, with the module and the line where it does, or it returns no logits.
    """
    try:
        with torch.no_grad(), quiet(), _eagerly():
            output = module(images.clone())
    except (Exception, SystemExit) as error:  # whatever the user's forward raises
        raise _failed(module, images, error) from error
    return logits_of(output, images)


@contextlib.contextmanager
def answering(module: nn.Module) -> Iterator[None]:
    """Make a module run on a copy of its batch and return its logits alone, within the block."""
    hooks = (
        module.register_forward_pre_hook(lambda _, given: (given[0].clone(), *given[1:])),
        module.register_forward_hook(lambda _, given, output: logits_of(output, given[0])),
    )
    try:
        with torch.no_grad(), quiet(), _eagerly():
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _eagerly() -> Any:
    """Return a context manager that runs code under ``torch.compile`` uncompiled."""
    return torch.compiler.set_stance("force_eager")


def check_inputs(module: nn.Module) -> None:
    """Raise CaptureError unless the model can be called with a batch of images alone."""
    if attribute(module, "main_input_name") in _TOKENS:  # an attribute of transformers' models
        raise _takes_text(module)
    if type(module).forward is nn.Module.forward and "forward" not in vars(module):
        inside = ", ".join(name for name, _ in module.named_children())
        raise CaptureError(
            f"{type(module).__name__} has no forward",
            hint=f"Hand over the network inside it ({shortened(inside)})." if inside else WRAP_HINT,
        )
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):  # not every callable has a signature
        return
    required = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if len(required) > 1 or any(p.kind is p.KEYWORD_ONLY for p in required):
        raise CaptureError(
            f"the model takes {len(required)} inputs ({', '.join(p.name for p in required)}); "
            "expected one, a batch of images",
            hint="If the others are constant, wrap it in a module whose forward(images) fills them in.",
        )
    if required and required[0].name in _TOKENS:
        raise _takes_text(module)


def logits_of(output: Any, images: Tensor) -> Tensor:
    """Return the logits (N, classes) from what a model returned for N images.

    Raises:
        CaptureError: there are no logits, or several tensors may be the logits.
    """
    logits = pick(output)
    while logits.ndim > 2 and logits.shape[-1] == 1:  # a fully convolutional classifier
        logits = logits.squeeze(-1)
    if logits.ndim == 1 and logits.shape[0] == images.shape[0]:  # one number per image
        logits = logits[:, None]
    elif logits.ndim < 2 and images.shape[0] == 1:  # the model squeezed the batch axis away
        logits = logits.reshape(1, -1)
    check_logits(logits, images)
    return logits


def check_logits(logits: Tensor, images: Tensor) -> None:
    """Raise CaptureError unless a tensor holds one row of float32 logits for each of the images."""
    found = f"{str(logits.dtype).removeprefix('torch.')} of shape ({', '.join(_sizes(logits, images))})"
    expected = "expected float32 logits of shape (batch, classes)"
    if logits.ndim > 2:
        what = "an answer for every pixel: a segmenter" if logits.ndim == 4 else "several answers for each picture"
        raise CaptureError(
            f"the model returns {found}, {what}; {expected}", hint="Only classifiers can be made early-exit."
        )
    if logits.ndim != 2 or logits.shape[0] != images.shape[0]:
        raise CaptureError(f"the model returns {found}; {expected}", hint="The first axis has to be the batch.")
    if logits.dtype in (torch.float16, torch.bfloat16, torch.float64):
        hint = "Remove the casts from its forward: it is exported in float32, and made smaller with --precision."
        raise CaptureError(f"the model returns {found}; {expected}", hint=hint)
    if logits.dtype != torch.float32:
        hint = "Return real numbers." if logits.is_complex() else "Return the logits, not the labels."
        raise CaptureError(f"the model returns {found}; {expected}", hint=hint)


def _sizes(tensor: Tensor, images: Tensor) -> list[str]:
    first = ["batch"] if tensor.ndim and tensor.shape[0] == images.shape[0] else list(map(str, tensor.shape[:1]))
    return [*first, *map(str, tensor.shape[1:])]


def pick(output: Any) -> Tensor:
    """Return the tensor with the logits: the only tensor, the one named ``logits``, or the only one with two axes.

    Raises:
        CaptureError: no tensor qualifies, or several do.
    """
    if isinstance(output, Tensor):
        return output
    named = _named(output)
    if _BOXES & {key for part in _parts(output) for key in _named(part)}:
        raise CaptureError(
            f"the model is a detector: it returns {_described(output)}; expected the logits of a classifier",
            hint="Only classifiers can be made early-exit.",
        )
    logits = named.get(_LOGITS)
    if isinstance(logits, Tensor):
        return logits
    tensors = [leaf for leaf in _parts(output) if isinstance(leaf, Tensor)]
    if len(tensors) == 1:
        return tensors[0]
    rows = [tensor for tensor in tensors if tensor.ndim == 2 and tensor.is_floating_point()]
    if not named and len(rows) == 1:
        return rows[0]
    what = f"{len(tensors)} tensors" if tensors else "no tensor"
    raise CaptureError(
        f"the model returns {what} ({_described(output)}); expected logits, or one tensor of that name", hint=WRAP_HINT
    )


def _named(output: Any) -> dict[str, Any]:
    """Return the content of a mapping, a named tuple or a data class by name; empty for anything else."""
    if isinstance(output, Mapping):
        return {str(key): value for key, value in output.items()}
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return dict(zip(output._fields, output, strict=True))
    if is_dataclass(output) and not isinstance(output, type):
        return {field.name: getattr(output, field.name, None) for field in fields(output)}
    return {}


def _parts(output: Any) -> list[Any]:
    """Return the output and everything nested inside it."""
    inside = list(_named(output).values()) or (list(output) if isinstance(output, list | tuple) else [])
    return [output, *(part for item in inside for part in _parts(item))]


def _described(output: Any) -> str:
    def shape(value: Any) -> str:
        if isinstance(value, Tensor):
            return "x".join(map(str, value.shape)) or "a scalar"
        if isinstance(value, list | tuple) and value:
            return f"{type(value).__name__} of {shape(value[0])}"
        return f"{type(value).__name__} of {', '.join(map(str, _named(value)))}" if _named(value) else _kind(value)

    named = {name: value for name, value in _named(output).items() if value is not None}
    if named:
        return shortened(", ".join(f"{name} {shape(value)}" for name, value in named.items()))
    if isinstance(output, list | tuple):
        return shortened(", ".join(map(shape, output)) or f"an empty {type(output).__name__}")
    return shape(output)


def _kind(value: Any) -> str:
    return "None" if value is None else type(value).__name__


def _failed(module: nn.Module, images: Tensor, error: BaseException) -> DyceError:
    where, innermost = place_of_error(module, error)
    if isinstance(innermost, nn.Embedding | nn.EmbeddingBag):
        return _takes_text(module)
    size = "x".join(map(str, images.shape[1:]))
    hint = f"Check --input-size, which is {','.join(map(str, images.shape[1:]))}, and that it runs in float32 on a CPU."
    return CaptureError(
        f"the model fails on images of {size}: {reason_of(error)}" + (f"; it stopped in {where}" if where else ""),
        hint=hint,
    )


def _takes_text(module: nn.Module) -> CaptureError:
    return CaptureError(
        f"{type(module).__name__} is a text model: it takes token ids; expected one that takes a batch of images",
        hint="Only image classifiers can be made early-exit.",
    )
