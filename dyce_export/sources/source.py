"""Turn what the user names into a model that is ready to be captured."""

from __future__ import annotations

import importlib
import logging
import operator
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from dyce_export.sources.checkpoints import (
    SAVE_HINT,
    Checkpoint,
    read_checkpoint,
    strip_prefixes,
    working_directory_importable,
)
from dyce_export.sources.inputs import Input, InputOverrides, Size, describe_input, timm_input
from dyce_export.sources.model_formats import Kind, kind_of
from dyce_export.sources.modules import make_ready, own_copy, unwrapped
from dyce_export.sources.places import attribute, reason_of
from dyce_export.sources.timm_models import build_timm, build_timm_for, current_name, seeded
from dyce_export.sources.weights import check_values, load_strictly, weights_for
from dyce_runtime.bundle.manifest import Preprocessing
from dyce_runtime.bundle.reader import sha256_of
from dyce_runtime.errors import ModelError, UsageError

Weights = Literal["pretrained", "checkpoint", "module", "random"]

_NO_OVERRIDES = InputOverrides()

logger = logging.getLogger("dyce_export")


@dataclass(frozen=True)
class Source:
    """A model ready to be captured: in eval mode, float32, on the CPU, frozen.

    Attributes:
        name: such as ``resnet50``.
        origin: ``timm:resnet50``, a file's name without its folder, or ``module pkg.mod:factory``.
        weights: where the weights came from, as in the manifest.
        module: takes float32 images (N, C, H, W), returns logits (N, classes); None if there is a ``program``.
        program: the content of a ``.pt2`` file; None if there is a ``module``.
        input_size: (C, H, W), in pixels.
        preprocessing: how images are prepared for the model.
        sha256: SHA-256 of the file with the weights, if there was one.
        class_names: class names in the order of the logits, if known.
        claimed: the accuracy in [0, 1] that a checkpoint states for the model.
    """

    name: str
    origin: str
    weights: Weights
    module: nn.Module | None
    program: ExportedProgram | None
    input_size: Size
    preprocessing: Preprocessing
    sha256: str | None = None
    class_names: tuple[str, ...] | None = None
    claimed: float | None = None


def load_source(
    model: str | None,
    *,
    arch: str | None = None,
    factory: str | None = None,
    trust_pickle: bool = False,
    overrides: InputOverrides = _NO_OVERRIDES,
    like: Input | None = None,
) -> Source:
    """Load the model that a user names, without network access.

    Args:
        model: ``timm:NAME`` (weights from a local cache, otherwise random), a checkpoint (``.pt``, ``.pth``, ``.tar``,
            ``.safetensors``), a model hub's folder with one, an exported program (``.pt2``, with ``trust_pickle``), or
            None with ``factory``. The type of a file is read from its content.
        arch: timm architecture of a checkpoint; takes precedence over the one that the checkpoint names.
        factory: ``package.module:callable`` without arguments that returns the module. The working directory is
            importable.
        trust_pickle: allow a checkpoint or an exported program to run arbitrary code.
        overrides: take precedence over what the checkpoint says, which takes precedence over what the model says.
        like: input of another model for the same images, used if neither user, checkpoint nor model says anything.

    Raises:
        UsageError: the arguments contradict each other.
        ModelError: the model cannot be found, read or built, or its weights do not fit.
    """
    if arch and factory:
        raise UsageError("--arch and --model both name the architecture; expected one of them")
    if not model:
        if not factory:
            raise UsageError(
                "no model was named", hint="Name a checkpoint, timm:NAME or --model PACKAGE.MODULE:CALLABLE."
            )
        return _from_factory(factory, overrides, like)
    path = Path(model)
    is_timm = model.startswith("timm:")
    is_program = kind_of(path) == Kind.PROGRAM if path.is_file() else path.suffix == ".pt2"
    if (arch or factory) and (is_timm or is_program):
        raise UsageError(f"{model} names its own architecture; --arch and --model go with a checkpoint")
    if is_timm:
        return _from_timm(model.removeprefix("timm:"), overrides)
    if not path.exists():
        raise _not_found(model)
    if is_program:
        return _from_program(path, trust_pickle, overrides, like)
    return _from_checkpoint(read_checkpoint(path, trust_pickle=trust_pickle), arch, factory, overrides, like)


def from_module(
    module: nn.Module,
    *,
    input_size: Size | None = None,
    name: str | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    interpolation: str | None = None,
    crop_pct: float | None = None,
    crop_mode: str | None = None,
    class_names: tuple[str, ...] | None = None,
    like: Input | None = None,
) -> Source:
    """Make a source from a module that maps float32 images (N, C, H, W) to logits. The module is copied, not changed.

    Args:
        module: the classifier, with its trained weights.
        input_size: (C, H, W), in pixels; may be omitted for timm models, which know theirs.
        name: name of the model; by default the name of its class.
        mean, std, interpolation, crop_pct, crop_mode, class_names: as in :class:`InputOverrides` and :class:`Source`.
        like: as in :func:`load_source`.

    Raises:
        UsageError: a value is out of its range.
        ModelError: ``module`` is not a module, cannot be copied, holds no plain weights, or has no known input size.
    """
    module = unwrapped(module)
    copied = own_copy(module)
    overrides = InputOverrides(input_size, mean, std, interpolation, crop_pct, crop_mode)
    kind = type(module)
    origin = f"module {kind.__module__}:{kind.__qualname__}"
    return _source(copied, name or kind.__name__, origin, "module", overrides, class_names=class_names, like=like)


def _source(
    module: nn.Module,
    name: str,
    origin: str,
    weights: Weights,
    overrides: InputOverrides,
    *,
    hints: Mapping[str, Any] | None = None,
    sha256: str | None = None,
    class_names: tuple[str, ...] | None = None,
    claimed: float | None = None,
    like: Input | None = None,
) -> Source:
    module = unwrapped(module)
    said, config = {**(hints or {}), **overrides.given()}, timm_input(module)
    class_names = class_names or _names_in_config(module)
    size, preprocessing = like if like and not (said or config) else describe_input(said, config)
    module = make_ready(module)
    check_values(module, origin)
    return Source(name, origin, weights, module, None, size, preprocessing, sha256, class_names, claimed)


def _names_in_config(module: nn.Module) -> tuple[str, ...] | None:
    """Return the class names from the configuration of a transformers model; None if they are mere numbers."""
    names = attribute(module, "config", "id2label")
    if not isinstance(names, Mapping) or sorted(names) != list(range(len(names))):
        return None
    if all(names[index] == f"LABEL_{index}" for index in names):
        return None
    return tuple(str(names[index]) for index in range(len(names)))


# timm


def _from_timm(name: str, overrides: InputOverrides) -> Source:
    name = current_name(name)
    module, file, class_names = build_timm(name, overrides.input_size)
    weights: Weights = "pretrained" if file else "random"
    sha256 = sha256_of(file) if file else None
    return _source(module, name, f"timm:{name}", weights, overrides, sha256=sha256, class_names=class_names)


# Checkpoints


def _from_checkpoint(
    checkpoint: Checkpoint, arch: str | None, factory: str | None, overrides: InputOverrides, like: Input | None
) -> Source:
    if checkpoint.module is not None and (arch or factory):
        tensors = strip_prefixes(checkpoint.module.state_dict())
        checkpoint = replace(checkpoint, state_dict=tensors, tensors=tensors, module=None)
    if not (arch or factory) and checkpoint.module is None:
        arch = _own_arch(checkpoint)
    if factory:
        name, module = factory.rpartition(":")[2], _call_factory(factory)
        checkpoint = weights_for(checkpoint, module, what=factory)
        load_strictly(module, checkpoint, what=factory, hint="Check that the factory builds the model that was saved.")
    elif arch:
        name = current_name(arch.removeprefix("timm:"))
        module, checkpoint = build_timm_for(checkpoint, name, overrides.input_size)
    else:
        assert checkpoint.module is not None
        name, module = Path(checkpoint.file).stem, checkpoint.module
    return _source(
        module,
        name,
        checkpoint.file,
        "checkpoint",
        overrides,
        hints=checkpoint.hints,
        sha256=checkpoint.sha256,
        class_names=checkpoint.class_names,
        claimed=checkpoint.claimed,
        like=like,
    )


def _own_arch(checkpoint: Checkpoint) -> str:
    import timm

    arch = checkpoint.arch
    if arch is None or not timm.is_model(arch.partition(".")[0]):
        named = (
            "names no architecture" if arch is None else f"names the architecture {arch!r}, which timm does not have"
        )
        raise ModelError(
            f"{checkpoint.file} holds weights and {named}",
            hint="Name it with --arch (a timm model) or --model PACKAGE.MODULE:CALLABLE (your own).",
        )
    return arch


def _not_found(model: str) -> ModelError:
    import timm

    known = timm.is_model(model.partition(".")[0])
    near = f"Did you mean timm:{model}?" if known else "Name a checkpoint file, or a timm model as timm:NAME."
    return ModelError(f"there is no file {model}, and it does not begin with timm:", hint=near)


# Factories and exported programs


def _from_factory(factory: str, overrides: InputOverrides, like: Input | None) -> Source:
    name, origin = factory.rpartition(":")[2], f"module {factory}"
    return _source(_call_factory(factory), name, origin, "module", overrides, like=like)


def _call_factory(factory: str) -> nn.Module:
    """Import ``package.module:name`` and return it if it is a module, or else the module that it returns."""
    path, _, name = factory.partition(":")
    if not path or not name:
        raise UsageError(f"the factory is {factory!r}; expected PACKAGE.MODULE:CALLABLE")
    with working_directory_importable(), seeded():
        try:
            imported = importlib.import_module(path)
        except (Exception, SystemExit) as error:  # importing runs the user's code
            hint = "Write the module as in an import, found from the current folder: net:MyNet for MyNet in net.py."
            if isinstance(error, SystemExit):
                hint = "What only a script does belongs under if __name__ == '__main__'."
            raise ModelError(
                f"cannot import {path!r} of the factory {factory}: {reason_of(error)}", hint=hint
            ) from error
        try:
            made = operator.attrgetter(name)(imported)
        except AttributeError as error:
            raise ModelError(f"module {path!r} has no {name!r}, which the factory {factory} names") from error
        if not isinstance(made, nn.Module):
            if not callable(made):
                raise ModelError(f"the factory {factory} is a {type(made).__name__}; expected a callable or a module")
            try:
                made = made()
            except (Exception, SystemExit) as error:  # the user's code
                raise ModelError(
                    f"the factory {factory} raised {reason_of(error)}", hint="It is called without arguments."
                ) from error
    if not isinstance(made, nn.Module):
        raise ModelError(f"the factory {factory} returned a {type(made).__name__}; expected a torch.nn.Module")
    return made


def _from_program(path: Path, trust_pickle: bool, overrides: InputOverrides, like: Input | None) -> Source:
    if not trust_pickle:
        # torch unpickles the non-tensor content of a program and evaluates its symbolic sizes as Python.
        raise ModelError(
            f"{path} is an exported program, and like pickles those run code when they are read; expected tensors",
            hint=SAVE_HINT,
        )
    try:
        program = torch.export.load(path)
    except Exception as error:  # torch raises in many ways on foreign archives
        raise ModelError(f"{path} cannot be loaded as an exported program: {reason_of(error)}") from error
    size = _program_input(path.name, program)
    asked = overrides.input_size or size
    if asked != size:
        raise ModelError(f"{path.name} takes an input of {size}, which cannot be changed to {asked}")
    if like is None or like.size != size or overrides.given():
        like = describe_input({**overrides.given(), "input_size": size}, {})
    preprocessing = like.preprocessing
    return Source(path.stem, path.name, "checkpoint", None, program, size, preprocessing, sha256_of(path))


def _program_input(file: str, program: ExportedProgram) -> Size:
    """Return (C, H, W) of the only input."""
    names = program.graph_signature.user_inputs
    values = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    if len(names) != 1 or not isinstance(values[0], Tensor) or values[0].ndim != 4 or values[0].dtype != torch.float32:
        found = [f"{v.dtype} {tuple(v.shape)}" if isinstance(v, Tensor) else type(v).__name__ for v in values]
        raise ModelError(
            f"{file} takes {len(names)} inputs ({', '.join(found)}); expected one batch of images, float32 (N, C, H, W)"
        )
    batch, *size = values[0].shape
    if isinstance(batch, int):
        shape = ", ".join(map(str, (2, *size)))
        raise ModelError(
            f"{file} has a fixed batch of {batch}; expected a dynamic batch axis",
            hint=f"Export it again: torch.export.export(model, (torch.zeros({shape}),), "
            "dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)).",
        )
    if not all(isinstance(n, int) for n in size):
        raise ModelError(f"{file} takes images of any size {tuple(size)}; expected a fixed channels, height and width")
    return (size[0], size[1], size[2])
