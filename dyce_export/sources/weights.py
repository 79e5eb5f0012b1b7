"""Matching the tensors of a checkpoint with those of a module: find their prefix and load them strictly."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dyce_export.sources.checkpoints import Checkpoint, strip_prefixes
from dyce_runtime.errors import ModelError

# Words in the names of what a training script stores with a model. Everything else under the model's prefix belongs to
# the model, and a module without it would compute something else.
_TRAINING = {"criterion", "loss", "losses", "metric", "metrics", "acc", "accuracy", "optimizer", "scheduler", "queue"}
_COPIES = {"teacher", "student", "momentum", "key", "query"}
_AVERAGED = {"ema", "averaged", "average", "swa"}
# A counter that is not read in eval mode.
_COUNTER = "num_batches_tracked"

logger = logging.getLogger("dyce_export")


class Difference(NamedTuple):
    """A tensor that differs between the file and the model; a shape is None if the tensor does not exist there."""

    name: str
    file: tuple[int, ...] | None
    model: tuple[int, ...] | None

    def __str__(self) -> str:
        """Describe the difference as one clause of an error message."""
        if self.file is None:
            return f"{self.name} {self.model} is missing"
        if self.model is None:
            return f"{self.name} {self.file} is not in the model"
        return f"{self.name} is {self.file} in the file, {self.model} in the model"


def differences(module: nn.Module, state_dict: Mapping[str, Tensor]) -> list[Difference]:
    """List what keeps weights from fitting a module: differing shapes first, then missing, then unexpected tensors."""
    own = {name: tuple(tensor.shape) for name, tensor in strip_prefixes(module.state_dict()).items()}
    given = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
    shapes = [Difference(n, given[n], own[n]) for n in own if n in given and given[n] != own[n]]
    missing = [Difference(n, None, own[n]) for n in own if n not in given and not n.endswith(_COUNTER)]
    unexpected = [Difference(n, given[n], None) for n in given if n not in own]
    return shapes + missing + unexpected


def weights_for(checkpoint: Checkpoint, module: nn.Module, *, what: str, any_shape: bool = False) -> Checkpoint:
    """Return the checkpoint with those tensors as weights that have the names and shapes of the module's.

    They may have any prefix under which the whole model fits. If several copies fit, the averaged weights are chosen,
    because these are the ones that were evaluated, provided that exactly one copy is averaged. If nothing fits, the
    nearest tensors are chosen, which :func:`load_strictly` then refuses.

    Args:
        what: name of the module in messages.
        any_shape: compare names only, because the module will be built for the shapes in the file.

    Raises:
        ModelError: several copies fit and differ, and none or several of them are averaged.
    """
    own = strip_prefixes(module.state_dict())
    matches = _matches(checkpoint.tensors, own)
    needed = sum(not name.endswith(_COUNTER) for name in own)
    whole = [prefix for prefix, count in matches.items() if count == needed]
    copies = {prefix: _under(prefix, checkpoint.tensors, own, whole) for prefix in whole}
    if not any_shape:
        fitting = {prefix: copy for prefix, copy in copies.items() if _same_shapes(copy, own)}
        copies = fitting or copies
    if copies:
        return replace(checkpoint, state_dict=copies[_choose_copy(copies, checkpoint, own, what)])
    prefix, count = max(matches.items(), key=lambda match: (match[1], -len(match[0])), default=("", 0))
    if count > len(own.keys() & checkpoint.state_dict.keys()):
        return replace(checkpoint, state_dict=_under(prefix, checkpoint.tensors, own, whole))
    return checkpoint


def load_strictly(module: nn.Module, checkpoint: Checkpoint, *, what: str, hint: str) -> None:
    """Copy every weight of a checkpoint into a module, in place.

    Args:
        what: name of the module in error messages.
        hint: hint of the error if the tensors do not fit.

    Raises:
        ModelError: a tensor is missing, unexpected, of another shape or of a type that cannot be a weight; the message
            names the first three.
    """
    found = differences(module, checkpoint.state_dict)
    if found:
        shapes = sum(d.file is not None and d.model is not None for d in found)
        missing = sum(d.file is None for d in found)
        raise ModelError(
            f"{checkpoint.file} does not fit {what} (tensors of another shape: {shapes}, missing: {missing}, "
            f"unexpected: {len(found) - shapes - missing}): {'; '.join(map(str, found[:3]))}. The file holds "
            f"{summary(checkpoint.tensors)}",
            hint=hint,
        )
    own = module.state_dict()
    names = zip(own, strip_prefixes(own), strict=True)
    state_dict = {name: checkpoint.state_dict.get(bare, own[name]) for name, bare in names}
    odd = [f"{name} {why}" for name, tensor in state_dict.items() if (why := _defect(tensor, own[name]))]
    if odd:
        raise ModelError(
            f"{checkpoint.file} holds {len(odd)} tensors that cannot be weights of {what}: {'; '.join(odd[:3])}",
            hint="Save the trained weights as dense floating-point tensors: torch.save(model.state_dict(), FILE).",
        )
    module.load_state_dict(state_dict)


def summary(tensors: Mapping[str, Tensor]) -> str:
    """Summarise a file in one line: its prefixes, with the number of tensors under each."""
    depth, groups = 1, Counter[str]()
    while len(groups) < 2 and depth < 8:
        groups = Counter(_group(name, depth) for name in tensors)
        depth += 1
    listed = [f"{prefix} ({count})" if prefix.endswith(".*") else prefix for prefix, count in groups.most_common(6)]
    rest = f" and {len(groups) - 6} more" if len(groups) > 6 else ""
    return f"{len(tensors)} tensors: {', '.join(listed)}{rest}" if tensors else "no tensors"


def _group(name: str, depth: int) -> str:
    parts = name.split(".")
    return name if len(parts) <= depth else ".".join(parts[:depth]) + ".*"


def _matches(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Counter[str]:
    """Count by prefix how many of the module's tensors, counters excluded, have their names under it."""
    matches: Counter[str] = Counter()
    for name in tensors:
        for start in _starts(name):
            if name[start:] in own and not name.endswith(_COUNTER):
                matches[name[:start]] += 1
    return matches


def _starts(name: str) -> Iterator[int]:
    """Yield the positions where the parts of a name begin."""
    yield 0
    yield from (match.end() for match in re.finditer(r"\.", name))


def _under(
    prefix: str, tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], copies: list[str]
) -> dict[str, Tensor]:
    """Return the tensors under a prefix, by the rest of their names, without training state and other copies."""
    others = tuple(other for other in copies if other != prefix and other.startswith(prefix))
    return {
        rest: tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
        and ((rest := name[len(prefix) :]) in own or not (name.startswith(others) or _is_for_training(rest)))
    }


def _is_for_training(name: str) -> bool:
    return bool(_words(name.partition(".")[0]) & (_TRAINING | _COPIES | _AVERAGED))


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower()))


def _same_shapes(copy: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> bool:
    return all(copy[name].shape == tensor.shape for name, tensor in own.items() if name in copy)


def _choose_copy(
    copies: Mapping[str, Mapping[str, Tensor]], checkpoint: Checkpoint, own: Mapping[str, Tensor], what: str
) -> str:
    """Return the prefix of the copy to use."""
    first, *others = copies
    if all(_equal(copies[first], copies[other], own) for other in others):
        return first
    averaged = [prefix for prefix in copies if _words(prefix) & _AVERAGED]
    shown = ", ".join(f"{prefix}*" if prefix else "at the top" for prefix in copies)
    if len(averaged) == 1:
        logger.info("%s holds several copies of %s: %s; taking the averaged one", checkpoint.file, what, shown)
        return averaged[0]
    raise ModelError(
        f"{checkpoint.file} holds {len(copies)} copies of {what} that differ: {shown}; expected one",
        hint="Save the one that was evaluated alone, with torch.save, and name that file.",
    )


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> bool:
    pairs = [(one[name], other[name]) for name in own if name in one and name in other]
    return all(_is_plain(a) and _is_plain(b) and a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not (tensor.is_meta or tensor.is_quantized)


def _defect(tensor: Tensor, own: Tensor) -> str | None:
    """Explain why a tensor of the right shape cannot be a weight; None if it can."""
    if not _is_plain(tensor):
        kind = "has no values" if tensor.is_meta else "is quantised" if tensor.is_quantized else "is sparse"
        return f"{kind}; expected dense numbers"
    if tensor.is_complex() != own.is_complex() or tensor.is_floating_point() < own.is_floating_point():
        return f"is {tensor.dtype}; expected {own.dtype}"
    return None


def check_values(module: nn.Module, what: str) -> None:
    """Raise ModelError if a tensor of a module has no values or contains NaN, or if a parameter is infinite."""
    parameters = {name for name, _ in module.named_parameters()}
    tensors = {name: t for name, t in module.state_dict().items() if isinstance(t, Tensor)}
    odd = [name for name, tensor in tensors.items() if not _is_plain(tensor)]
    if odd:
        raise ModelError(
            f"{what} has {len(odd)} tensors that are sparse, quantised or without values, such as {odd[0]}; expected "
            "dense numbers",
            hint="Give it its trained weights, as floating-point numbers.",
        )
    lost = [
        name
        for name, tensor in tensors.items()
        if tensor.is_floating_point()
        and not name.endswith(_COUNTER)
        and not bool((tensor.isfinite() if name in parameters else ~tensor.isnan()).all())
    ]
    if lost:
        raise ModelError(
            f"{len(lost)} of the {len(tensors)} tensors of {what} hold NaN or infinity, such as {lost[0]}",
            hint="The training diverged, or the file was damaged: take an earlier checkpoint.",
        )
