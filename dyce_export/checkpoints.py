"""Checkpoint files: reading them without running code, and loading them strictly into a module."""

from __future__ import annotations

import argparse
import json
import pickle
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dyce_runtime.bundle import sha256_of
from dyce_runtime.errors import ModelError

# Where training scripts keep the weights, best first: averaged weights are the ones that were evaluated.
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
HINT_TYPES: dict[str, type | tuple[type, ...]] = {
    "input_size": (list, tuple),  # of numbers, as the next two
    "mean": (list, tuple),
    "std": (list, tuple),
    "interpolation": str,
    "crop_pct": (int, float),
    "crop_mode": str,
    "num_classes": int,
}

# Plain data that training scripts store beside the weights; the rest of pickle stays forbidden.
_scalar = np.float64(0).__reduce__()[0]
SAFE_GLOBALS: list[Any] = [
    argparse.Namespace,
    (_scalar, "numpy.core.multiarray.scalar"),
    (_scalar, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64)),
]

# The first pickled number of a file that torch.save wrote before 1.6.
LEGACY_MAGIC = bytes.fromhex("6cfc9c46f9206aa85019")

SAVE_HINT = (
    "Save the weights alone with torch.save(model.state_dict(), FILE) and name the architecture with --arch, "
    "or pass --trust-pickle if you trust the file."
)


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds.

    Attributes:
        file: name of the file, without its folder.
        sha256: of the file, in hexadecimal.
        state_dict: the weights on the CPU, wrapper prefixes removed; empty if ``module`` is set.
        module: a whole pickled module (only with ``trust_pickle``).
        arch: the architecture that the file names.
        hints: what the file says about its input, any of ``input_size`` (C, H, W), ``mean``, ``std``,
            ``interpolation``, ``crop_pct``, ``crop_mode``, ``num_classes``.
        class_names: in the order of the logits.
    """

    file: str
    sha256: str
    state_dict: dict[str, Tensor]
    module: nn.Module | None = None
    arch: str | None = None
    hints: dict[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] | None = None


def read_checkpoint(path: str | Path, *, trust_pickle: bool = False) -> Checkpoint:
    """Read a state dict, a training checkpoint (``torch.save``) or a ``.safetensors`` file.

    Args:
        path: the file.
        trust_pickle: unpickle objects other than tensors, which lets the file run any code.

    Raises:
        ModelError: there is no such file, it is damaged or something else, it holds no weights, or it holds
            pickled objects and is not trusted.
    """
    path = Path(path)
    _check_file(path)
    content = _load_safetensors(path) if path.suffix == ".safetensors" else _load_pickle(path, trust_pickle)
    weights = _find_weights(content)
    if weights is None:
        found = list(map(str, content)) if isinstance(content, Mapping) else [f"a {type(content).__name__}"]
        raise ModelError(
            f"{path} holds no model weights, only: {', '.join(found) or 'nothing'}; expected a state dict",
            hint="Save the weights with torch.save(model.state_dict(), FILE).",
        )
    facts = content if isinstance(content, Mapping) else {}
    arch, hints, class_names = _describe(facts)
    module = _unwrap(weights) if isinstance(weights, nn.Module) else None
    state_dict = {} if isinstance(weights, nn.Module) else strip_prefixes(weights)
    return Checkpoint(path.name, sha256_of(path), state_dict, module, arch, hints, class_names)


def strip_prefixes(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove what DistributedDataParallel, torch.compile, weight averaging and Lightning put before the names.

    ``_orig_mod.`` goes wherever it stands; ``module.`` and ``model.`` go, repeatedly, if every name has them.
    """
    stripped = {name.replace("_orig_mod.", ""): tensor for name, tensor in state_dict.items()}
    while prefix := next((p for p in ("module.", "model.") if stripped and all(n.startswith(p) for n in stripped)), ""):
        stripped = {name.removeprefix(prefix): tensor for name, tensor in stripped.items()}
    return stripped


class Difference(NamedTuple):
    """A tensor that the file and the model do not agree on; a shape is None where there is no such tensor."""

    name: str
    file: tuple[int, ...] | None
    model: tuple[int, ...] | None

    def __str__(self) -> str:
        """One clause of an error message."""
        if self.file is None:
            return f"{self.name} {self.model} is missing"
        if self.model is None:
            return f"{self.name} {self.file} is not in the model"
        return f"{self.name} is {self.file} in the file, {self.model} in the model"


def differences(module: nn.Module, state_dict: Mapping[str, Tensor]) -> list[Difference]:
    """What keeps a stripped state dict from fitting: differing shapes first, then missing, then unexpected tensors."""
    own = {name: tuple(tensor.shape) for name, tensor in strip_prefixes(module.state_dict()).items()}
    given = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
    shapes = [Difference(n, given[n], own[n]) for n in own if n in given and given[n] != own[n]]
    missing = [Difference(n, None, own[n]) for n in own if n not in given and not n.endswith("num_batches_tracked")]
    unexpected = [Difference(n, given[n], None) for n in given if n not in own]
    return shapes + missing + unexpected


def load_strictly(module: nn.Module, checkpoint: Checkpoint, *, what: str, hint: str) -> None:
    """Copy every tensor of a checkpoint into a module, of which ``what`` is the name in error messages.

    Raises:
        ModelError: a tensor is missing, unexpected or of another shape; names the first three.
    """
    found = differences(module, checkpoint.state_dict)
    if found:
        shapes = sum(d.file is not None and d.model is not None for d in found)
        missing = sum(d.file is None for d in found)
        raise ModelError(
            f"{checkpoint.file} does not fit {what} (tensors of another shape: {shapes}, missing: {missing}, "
            f"unexpected: {len(found) - shapes - missing}): {'; '.join(map(str, found[:3]))}",
            hint=hint,
        )
    own = module.state_dict()
    names = zip(own, strip_prefixes(own), strict=True)
    state_dict = {name: checkpoint.state_dict.get(bare, own[name]) for name, bare in names}
    module.load_state_dict(state_dict)


@contextmanager
def working_directory_importable() -> Iterator[None]:
    """Let imports find modules in the working directory, as ``python script.py`` beside them would."""
    sys.path.insert(0, "")
    try:
        yield
    finally:
        sys.path.remove("")


def _check_file(path: Path) -> None:
    """Refuse what torch would only stumble over."""
    if path.is_dir():
        raise ModelError(f"{path} is a directory; expected a checkpoint file", hint="Name the file inside it.")
    try:
        with path.open("rb") as stream:
            head = stream.read(16)
    except FileNotFoundError as error:
        raise ModelError(f"there is no file {path}") from error
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    if not head:
        raise ModelError(f"{path} is empty; expected a checkpoint")
    if path.suffix == ".safetensors":
        return
    if head.startswith(b"PK"):
        _check_archive(path)
    elif LEGACY_MAGIC not in head:
        raise ModelError(
            f"{path} is not a checkpoint: it begins with {head[:6]!r}; expected a file written by torch.save",
            hint="Checkpoints end in .pt, .pth, .tar or .safetensors.",
        )


def _check_archive(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        raise ModelError(f"{path} is truncated: the end of the archive is missing", hint="Copy or download it again.")
    with zipfile.ZipFile(path) as archive:
        members = {name.partition("/")[2] for name in archive.namelist()}
    if "constants.pkl" in members:
        raise ModelError(
            f"{path} is a TorchScript archive, which torch.export cannot capture; expected weights",
            hint="Save model.state_dict() of the Python model and name its architecture with --arch or --model.",
        )
    if "archive_format" in members:
        raise ModelError(f"{path} is an exported program; expected weights", hint="Rename it so that it ends in .pt2.")
    if "data.pkl" not in members:
        raise ModelError(f"{path} is a zip archive without weights; expected a file written by torch.save")


def _load_safetensors(path: Path) -> dict[str, Any]:
    """The tensors under ``state_dict``, beside the file's metadata and that of timm's ``config.json``."""
    import safetensors

    try:
        with safetensors.safe_open(path, framework="pt") as stream:
            metadata = dict(stream.metadata() or {})
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 (not a dict)
    except safetensors.SafetensorError as error:
        raise ModelError(
            f"{path} is truncated or not a safetensors file: {error}", hint="Copy or download it again."
        ) from error
    facts = {name: _parsed(text) for name, text in metadata.items()}
    config = path.with_name("config.json")
    if config.is_file():
        beside = _parsed(config.read_text("utf-8", "replace"))
        if isinstance(beside, dict) and "architecture" in beside:
            facts = {**beside, **facts}
    return {**facts, "state_dict": tensors} if tensors else facts


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _load_pickle(path: Path, trust_pickle: bool) -> Any:
    mapped = zipfile.is_zipfile(path)  # torch maps only its zip format into memory
    with torch.serialization.safe_globals(SAFE_GLOBALS):
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
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
        with working_directory_importable():
            return torch.load(path, map_location="cpu", weights_only=False)
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


def _find_weights(content: Any) -> dict[str, Tensor] | nn.Module | None:
    """The best weights of a nested checkpoint; None if there are none."""
    if isinstance(content, nn.Module):
        return content
    if not isinstance(content, Mapping):
        return None
    for key in WEIGHT_KEYS:
        weights = _find_weights(content.get(key))
        if weights is not None:
            return weights
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    tensors.pop("n_averaged", None)  # the counter of torch.optim.swa_utils.AveragedModel
    # A stored loss or step is a tensor too, but of no axes.
    return tensors if any(tensor.ndim for tensor in tensors.values()) else None


def _unwrap(module: nn.Module) -> nn.Module:
    while isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        module = module.module
    return module


def _describe(facts: Mapping[Any, Any]) -> tuple[str | None, dict[str, Any], tuple[str, ...] | None]:
    """Architecture, hints and class names from what timm and others store beside the weights."""
    args, config = facts.get("args"), facts.get("pretrained_cfg")
    args = vars(args) if isinstance(args, argparse.Namespace) else args if isinstance(args, Mapping) else {}
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
    """Training scripts store None, 0 or an empty string for what was not set."""
    numbers = not isinstance(value, list | tuple) or all(isinstance(number, int | float) for number in value)
    return bool(value) and isinstance(value, HINT_TYPES[key]) and numbers


def _class_names(facts: Mapping[Any, Any], config: Mapping[Any, Any]) -> tuple[str, ...] | None:
    index = facts.get("class_to_idx")
    if isinstance(index, Mapping) and index and set(index.values()) == set(range(len(index))):
        return tuple(str(name) for name in sorted(index, key=index.__getitem__))
    for names in (facts.get("classes"), facts.get("class_names"), facts.get("label_names"), config.get("label_names")):
        if isinstance(names, list | tuple) and names:
            return tuple(map(str, names))
    return None
