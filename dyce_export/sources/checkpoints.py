"""Checkpoint files: reading them without running code."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import pickle
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dyce_export.sources.model_formats import Kind, file_in, index_of, kind_of, weight_map
from dyce_runtime.bundle.reader import sha256_of
from dyce_runtime.errors import ModelError

log = logging.getLogger("dyce_export")

# Keys under which training scripts store weights, best first: averaged weights are the ones that were evaluated.
WEIGHT_KEYS = (
    "state_dict_ema",
    "model_ema",
    "state_dict",
    "model_state_dict",
    "model",
    "ema",
    "module",
    "net",
    "weights",
)
ARCH_KEYS = ("arch", "architecture", "model_name", "model")
# Accuracies on held-out samples. "acc" alone is omitted because it may be the training accuracy.
ACCURACY_KEYS = (
    "best_acc1",
    "best_prec1",
    "best_acc",
    "best_top1",
    "best_accuracy",
    "best_val_acc",
    "val_acc",
    "val_acc1",
    "val_accuracy",
    "val_top1",
    "test_acc",
    "test_accuracy",
)
HINT_TYPES: dict[str, type | tuple[type, ...]] = {
    "input_size": (list, tuple),  # of numbers, like the next two
    "mean": (list, tuple),
    "std": (list, tuple),
    "interpolation": str,
    "crop_pct": (int, float),
    "crop_mode": str,
    "num_classes": int,
}

# Plain data that training scripts store with the weights; all other pickled types stay forbidden.
_scalar = np.float64(0).__reduce__()[0]
SAFE_GLOBALS: list[Any] = [
    argparse.Namespace,
    (_scalar, "numpy.core.multiarray.scalar"),
    (_scalar, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64)),
]

# Name parts that DistributedDataParallel, torch.compile, Lightning and FSDP add wherever they wrap a module.
_WRAPPERS = {"module", "_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# Nesting depth beyond which no weights are expected.
_DEPTH = 8

SAVE_HINT = (
    "Save the weights alone with torch.save(model.state_dict(), FILE) and name the architecture with --arch, "
    "or pass --trust-pickle if you trust the file."
)


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint file.

    Attributes:
        file: name of the file, without its folder.
        sha256: SHA-256 of the file, in hexadecimal.
        state_dict: most likely the weights, on the CPU, without wrapper prefixes; empty if ``module`` is set.
        tensors: all tensors by name, prefixed with the keys above them, such as ``state_dict.conv.weight``.
        module: a whole pickled module (only with ``trust_pickle``).
        arch: the architecture that the file names.
        hints: what the file says about the model's input, any of ``input_size`` (C, H, W), ``mean``, ``std``,
            ``interpolation``, ``crop_pct``, ``crop_mode``, ``num_classes``.
        class_names: class names in the order of the logits.
        claimed: the accuracy in [0, 1] on held-out samples that the file states.
    """

    file: str
    sha256: str
    state_dict: dict[str, Tensor]
    tensors: dict[str, Tensor] = field(default_factory=dict, repr=False)
    module: nn.Module | None = None
    arch: str | None = None
    hints: dict[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] | None = None
    claimed: float | None = None


def read_checkpoint(path: str | Path, *, trust_pickle: bool = False) -> Checkpoint:
    """Read a state dict, a training checkpoint (``torch.save``), a safetensors file or weights in several files.

    Args:
        path: the file, whose type is read from its content; for weights in several files, their index or any of
            them; or a model hub's folder that contains them.
        trust_pickle: unpickle objects other than tensors, which lets the file run arbitrary code.

    Raises:
        ModelError: the file does not exist, is damaged or of another type, holds no weights, or holds pickled objects
            and is not trusted.
    """
    path = Path(path)
    path = file_in(path) if path.is_dir() else path
    path = index_of(path) or path
    files, content = _load(path, trust_pickle)
    tensors = without_wrappers(dict(_named_tensors(content)))
    weights = _find_weights(content)
    if weights is None and _are_weights(tensors):
        weights = tensors
    if weights is None:
        raise ModelError(
            f"{path} holds no model weights, only: {_contents(content)}; expected a state dict",
            hint="Save the weights with torch.save(model.state_dict(), FILE).",
        )
    facts = {**_config_beside(path), **(content if isinstance(content, Mapping) else {})}
    arch, hints, class_names = _describe(facts)
    module = _unwrap(weights) if isinstance(weights, nn.Module) else None
    state_dict = {} if isinstance(weights, nn.Module) else strip_prefixes(weights)
    described = (arch, hints, class_names, _claimed(facts))
    return Checkpoint(path.name, _sha256_of(files), state_dict, tensors, module, *described)


def without_wrappers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Restore the names that the tensors had before the model or its parts were wrapped, unless two would coincide."""
    bare: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        short = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
        bare[name if short in bare or not short else short] = tensor
    return bare


def strip_prefixes(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove wrapper parts from the names, and a leading ``model.`` repeatedly as long as every name begins with it."""
    stripped = without_wrappers(state_dict)
    while stripped and all(name.startswith("model.") for name in stripped):
        stripped = {name.removeprefix("model."): tensor for name, tensor in stripped.items()}
    return stripped


@contextmanager
def working_directory_importable() -> Iterator[None]:
    """Let imports find modules in the working directory, as ``python script.py`` would for a script there."""
    sys.path.insert(0, "")
    try:
        yield
    finally:
        sys.path.remove("")


def _load(path: Path, trust_pickle: bool) -> tuple[list[Path], Any]:
    """Return the files that were read for a path, and their content."""
    kind = kind_of(path)
    if kind == Kind.PROGRAM:
        raise ModelError(f"{path} is an exported program; expected weights", hint="Name it without --arch and --model.")
    if kind != Kind.SHARDED:
        return [path], _load_safetensors(path) if kind == Kind.SAFETENSORS else _load_pickle(path, trust_pickle)
    names = weight_map(path) or {}
    tensors: dict[str, Tensor] = {}
    for file in (files := sorted(set(names.values()))):
        if kind_of(file) == Kind.SHARDED:
            raise ModelError(f"{path} names {file.name}, which is an index; expected a file with weights")
        tensors |= dict(_named_tensors(_load(file, trust_pickle)[1]))
    tensors = {name.removeprefix("state_dict."): tensor for name, tensor in tensors.items()}
    if missing := [name for name in names if name not in tensors]:
        raise ModelError(
            f"the files that {path} names lack {len(missing)} of its {len(names)} tensors, such as {missing[0]}",
            hint="Copy or download the whole folder again.",
        )
    return [path, *files], {"state_dict": {name: tensors[name] for name in names}}


def _sha256_of(files: list[Path]) -> str:
    """Return the digest of one file, or the digest over the digests of several."""
    digests = [sha256_of(file) for file in files]
    return digests[0] if len(files) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _load_safetensors(path: Path) -> dict[str, Any]:
    """Return the tensors under ``state_dict``, together with the file's metadata."""
    import safetensors

    try:
        with safetensors.safe_open(path, framework="pt") as stream:
            metadata = dict(stream.metadata() or {})
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 (not a dict)
    except Exception as error:  # safetensors raises SafetensorError, and torch other errors for unsupported types
        raise ModelError(
            f"{path} is truncated or not a safetensors file: {error}", hint="Copy or download it again."
        ) from error
    facts = {name: _parsed(text) for name, text in metadata.items()}
    return {**facts, "state_dict": tensors} if tensors else facts


def _config_beside(path: Path) -> dict[str, Any]:
    """Return what a model hub's ``config.json`` beside the weights says, if timm or transformers wrote it."""
    try:
        found = _parsed(path.with_name("config.json").read_text("utf-8", "replace"))
    except OSError:
        return {}
    if not isinstance(found, dict):
        return {}
    if "architecture" in found:
        return found
    names = found.get("architectures")
    return {"architecture": names[0]} if isinstance(names, list) and names and "model_type" in found else {}


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _load_pickle(path: Path, trust_pickle: bool) -> Any:
    # torch memory-maps only its zip format, only from a path, and it trusts the suffix.
    mapped = zipfile.is_zipfile(path) and path.suffix != ".safetensors"
    with torch.serialization.safe_globals(SAFE_GLOBALS), path.open("rb") as stream:
        try:
            return torch.load(path if mapped else stream, map_location="cpu", weights_only=True, mmap=mapped)
        except pickle.UnpicklingError as error:
            if trust_pickle:
                return _load_trusted(path)
            found = re.search(r"GLOBAL (\S+)", str(error)) or re.search(r"WeightsUnpickler error:\s*(.+)", str(error))
            raise ModelError(
                f"{path} holds pickled Python objects ({found[1] if found else 'unknown'}), and pickles run code when "
                "they are read; expected tensors",
                hint=SAVE_HINT,
            ) from error
        except Exception as error:  # a damaged file can fail anywhere in the unpickler
            raise _damaged(path, error) from error


def _load_trusted(path: Path) -> Any:
    try:
        with working_directory_importable(), path.open("rb") as stream:
            return torch.load(stream, map_location="cpu", weights_only=False)
    except (ImportError, AttributeError) as error:
        raise ModelError(
            f"{path} needs code that cannot be imported: {error}",
            hint="Run in the folder from which the model was saved, or put its code on PYTHONPATH.",
        ) from error
    except Exception as error:  # whatever the pickled code raises
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ModelError:
    reason = (str(error).splitlines() or [""])[0]
    return ModelError(
        f"{path} is truncated or damaged: {type(error).__name__}{': ' if reason else ''}{reason}",
        hint="Copy or download it again.",
    )


def _find_weights(content: Any, depth: int = 0) -> dict[str, Tensor] | nn.Module | None:
    """Return the best weights of a nested checkpoint; None if there are none."""
    if isinstance(content, nn.Module):
        return content
    if not isinstance(content, Mapping) or depth > _DEPTH:
        return None
    for key in WEIGHT_KEYS:
        weights = _find_weights(content.get(key), depth + 1)
        if weights is not None:
            return weights
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    tensors.pop("n_averaged", None)  # the counter of torch.optim.swa_utils.AveragedModel
    return tensors if _are_weights(tensors) else None


def _are_weights(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether any tensor has axes: a stored loss or step is a tensor too, but a scalar."""
    return any(tensor.ndim for tensor in tensors.values())


def _named_tensors(content: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of nested mappings under its keys, joined by dots; skip the numbered state of optimisers."""
    if not isinstance(content, Mapping) or len(above) > _DEPTH:
        return
    for key, value in content.items():
        if isinstance(key, str) and isinstance(value, Tensor):
            yield ".".join((*above, key)), value
        elif isinstance(key, str):
            yield from _named_tensors(value, (*above, key))


def _contents(content: Any) -> str:
    """Summarise the content of a file without weights in one line."""
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    if set(content) == {"state", "param_groups"}:
        return "the state of an optimiser"
    names = list(map(str, content))
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") if names else "nothing"


def _unwrap(module: nn.Module) -> nn.Module:
    while isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        module = module.module
    return module


def _claimed(facts: Mapping[Any, Any]) -> float | None:
    """Return the accuracy that a training script stored, as a fraction in [0, 1]; the lowest if there are several."""
    found = [facts.get(key) for key in ACCURACY_KEYS]
    if _arguments(facts).get("eval_metric", "top1") == "top1":
        found.append(facts.get("metric"))  # written by timm
    numbers = [float(value) for value in found if _is_number(value)]  # type: ignore[arg-type]
    shares = [value if value <= 1 else value / 100 for value in numbers if 0 < value <= 100]
    return min(shares, default=None)


def _is_number(value: Any) -> bool:
    scalar = isinstance(value, Tensor | np.generic) and value.ndim == 0 and not np.iscomplexobj(value)
    return scalar or isinstance(value, int | float)


def _arguments(facts: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """Return the arguments of the training script, if they were stored."""
    args = facts.get("args")
    return vars(args) if isinstance(args, argparse.Namespace) else args if isinstance(args, Mapping) else {}


def _describe(facts: Mapping[Any, Any]) -> tuple[str | None, dict[str, Any], tuple[str, ...] | None]:
    """Return architecture, hints and class names from what timm and others store with the weights."""
    args, config = _arguments(facts), facts.get("pretrained_cfg")
    config = config if isinstance(config, Mapping) else {}
    named = [source.get(key) for source in (facts, args, config) for key in ARCH_KEYS]
    arch = next((name for name in named if isinstance(name, str) and name), None)
    hints: dict[str, Any] = {}
    for source in (config, facts, args):
        hints |= {key: source[key] for key in HINT_TYPES if _is_hint(key, source.get(key))}
    if isinstance(args.get("img_size"), int):
        hints["input_size"] = (args.get("in_chans") or 3, args["img_size"], args["img_size"])
    return arch, hints, _class_names(facts, config)


def _is_hint(key: str, value: Any) -> bool:
    """Return whether a value is a usable hint: training scripts store None, 0 or "" for unset options."""
    numbers = not isinstance(value, list | tuple) or all(isinstance(number, int | float) for number in value)
    return bool(value) and isinstance(value, HINT_TYPES[key]) and numbers


def _class_names(facts: Mapping[Any, Any], config: Mapping[Any, Any]) -> tuple[str, ...] | None:
    index = facts.get("class_to_idx")
    if isinstance(index, Mapping) and index:
        numbers = [value for value in index.values() if isinstance(value, Integral)]
        if len(numbers) == len(index) and set(numbers) == set(range(len(index))):
            return tuple(str(name) for name in sorted(index, key=index.__getitem__))
        log.warning(
            "class_to_idx of the checkpoint does not number its %d classes 0 to %d, and is not used",
            len(index),
            len(index) - 1,
        )
    for names in (facts.get("classes"), facts.get("class_names"), facts.get("label_names"), config.get("label_names")):
        if isinstance(names, list | tuple) and names:
            return tuple(map(str, names))
    return None
