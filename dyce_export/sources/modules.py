"""Preparing a user's module for capture: unwrap and copy it, with plain float32 weights, in eval mode."""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm
from torch.utils import _pytree as pytree

from dyce_export.sources.places import reason_of
from dyce_runtime.errors import ModelError

log = logging.getLogger("dyce_export")

# Class names of the wrappers that training scripts put around a network, and the attribute that holds the network. For
# averaged weights that is the averaged network.
_WRAPPERS = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "OptimizedModule": "_orig_mod",
    "AveragedModel": "module",
    "ModelEma": "ema",
    "ModelEMA": "ema",
    "ModelEmaV2": "module",
    "ModelEmaV3": "module",
}
_QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized")
_PLAIN = {"_parameters", "_buffers", "_modules"}


def unwrapped(module: Any) -> nn.Module:
    """Return the network inside the wrappers of a training script; log each wrapper that is removed.

    Raises:
        ModelError: ``module`` is not a module.
    """
    for kind in type(module).__mro__:
        inside = getattr(module, _WRAPPERS.get(kind.__name__, ""), None)
        if isinstance(inside, nn.Module):
            log.info("%s is a wrapper: exporting the %s inside it", kind.__name__, type(inside).__name__)
            return unwrapped(inside)
    if isinstance(module, nn.Module):
        return module
    hint = ""
    if isinstance(module, type) and issubclass(module, nn.Module):
        hint = f"{module.__name__} is a class: hand over an instance of it, with its trained weights."
    elif isinstance(module, dict):
        hint = "Load the weights into the module that they belong to, and hand that over."
    raise ModelError(f"expected a torch.nn.Module, got {type(module).__name__}", hint=hint)


def own_copy(module: nn.Module) -> nn.Module:
    """Return a copy of a user's module, which shares those attributes that cannot be copied and are no weights.

    Raises:
        ModelError: the module holds no exportable weights, or it cannot be copied.
    """
    check_exportable(module)
    weights = {id(tensor) for tensor in (*module.parameters(), *module.buffers()) if tensor.is_leaf}
    plain = (tensor for child in module.modules() for tensor in _plain_tensors(child))
    memo: dict[int, Any] = {id(tensor): _detached(tensor) for tensor in plain if id(tensor) not in weights}
    try:
        try:
            copied = copy.deepcopy(module, dict(memo))
        except Exception:  # locks, files and connections cannot be copied
            memo |= {id(value): value for child in module.modules() for value in _uncopyable(child, memo)}
            copied = copy.deepcopy(module, memo)
    except Exception as error:  # whatever the user's __deepcopy__ raises
        raise ModelError(
            f"the module cannot be copied: {reason_of(error)}",
            hint="Weights have to be parameters or buffers; remove what cannot be copied before the export.",
        ) from error
    for child in copied.modules():
        compiled = getattr(vars(child).get("forward"), "_torchdynamo_orig_callable", None)
        if getattr(compiled, "__func__", None) is type(child).forward:
            del child.forward  # a forward set to torch.compile(module.forward) would run the original module
    return copied


def make_ready(module: nn.Module) -> nn.Module:
    """Put a module that may be changed into eval mode, with float32 weights on the CPU, in place; return it.

    Weights that are computed from others on every call (pruning, weight and spectral norm, other parametrizations) are
    computed once and stored.

    Raises:
        ModelError: the module holds no exportable weights, or its own code fails.
    """
    check_exportable(module)
    try:
        module.eval()
        module.cpu().float()  # complex weights stay complex
        for child in module.modules():
            _keep_computed_weights(child)
            if isinstance(child, nn.DataParallel):
                child.device_ids = []  # otherwise it sends the batch to its GPUs
        module.requires_grad_(False)
    except Exception as error:  # any of these methods may be overridden by the user
        raise ModelError(
            f"the module cannot be made ready for inference on a CPU: {reason_of(error)}",
            hint="module.eval().cpu().float() has to work.",
        ) from error
    return module


def check_exportable(module: nn.Module) -> None:
    """Raise ModelError for a module that has no Python code or whose weights are not plain numbers."""
    for path, child in module.named_modules():
        name = f"its part {path}" if path else "this"
        if isinstance(child, torch.jit.ScriptModule):
            raise ModelError(
                f"{name} is TorchScript ({getattr(child, 'original_name', type(child).__name__)}), which torch.export "
                "cannot capture; expected a module in Python",
                hint="Hand over the module that was scripted or traced, or build it and load state_dict() of this one.",
            )
        tensors = [*child._parameters.items(), *child._buffers.items()]
        if any(nn.parameter.is_lazy(tensor) for _, tensor in tensors):
            raise ModelError(
                f"{name} ({type(child).__name__}) has no weights yet: it is lazy and has never run",
                hint="Run the model once on a batch, then train it or load its weights, before it is exported.",
            )
        meta = next((key for key, tensor in tensors if tensor is not None and tensor.is_meta), None)
        if meta is not None:
            raise ModelError(
                f"{name} ({type(child).__name__}) has no values for {meta!r}: it is on the meta device",
                hint="Load the weights: module.to_empty(device='cpu'), then module.load_state_dict(...).",
            )
        quantised = any(tensor is not None and tensor.is_quantized for _, tensor in tensors)
        if quantised or type(child).__module__.startswith(_QUANTISED):
            raise ModelError(
                f"{name} ({type(child).__name__}) is quantised already; expected float weights",
                hint="Hand over the float32 model; --precision int8 lowers it with its exits compared.",
            )


def _plain_tensors(module: nn.Module) -> list[Tensor]:
    """Return tensors that are plain attributes, such as a pruned weight, and buffers that are computed from others."""
    values = [value for name, value in vars(module).items() if name not in _PLAIN]
    plain = [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]
    return [*plain, *(buffer for buffer in module._buffers.values() if buffer is not None and not buffer.is_leaf)]


def _detached(tensor: Tensor) -> Tensor:
    """Copy a tensor on the CPU, in float32 if it is floating point; torch's deepcopy refuses computed tensors."""
    copied = tensor.detach().clone().cpu()
    return copied.float() if copied.is_floating_point() else copied


def _uncopyable(module: nn.Module, memo: dict[int, Any]) -> list[Any]:
    found = []
    for name, value in vars(module).items():
        if name not in _PLAIN and not callable(value):
            try:
                copy.deepcopy(value, dict(memo))
            except Exception:  # copying a foreign object may raise anything
                found.append(value)
    return found


def _keep_computed_weights(module: nn.Module) -> None:
    for hook in list(module._forward_pre_hooks.values()):
        if isinstance(hook, prune.BasePruningMethod):
            prune.remove(module, hook._tensor_name)  # type: ignore[no-untyped-call]
        elif isinstance(hook, WeightNorm):
            remove_weight_norm(module, hook.name)
        elif isinstance(hook, SpectralNorm):
            remove_spectral_norm(module, hook.name)
    if parametrize.is_parametrized(module):
        # torch's own removal modifies the class, which a copy shares with the original module.
        computed = {name: getattr(module, name).detach() for name in module.parametrizations}  # type: ignore[union-attr]
        module.__class__ = parametrize.type_before_parametrizations(module)
        del module.parametrizations
        for name, value in computed.items():
            module.register_parameter(name, nn.Parameter(value, requires_grad=False))
