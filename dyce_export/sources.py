"""From what the user names to a model that is ready to be captured, and how its pictures are prepared."""

from __future__ import annotations

import copy
import difflib
import importlib
import logging
import math
import operator
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

import torch
from dyce_runtime.errors import ModelError, UsageError
from dyce_runtime.manifest import Preprocessing
from torch import Tensor, nn
from torch.export import ExportedProgram

from dyce_export.checkpoints import (
    Checkpoint,
    differences,
    file_sha256,
    load_strictly,
    read_checkpoint,
    strip_prefixes,
    working_directory_importable,
)

Size = tuple[int, int, int]
Weights = Literal["pretrained", "checkpoint", "module", "random"]

INTERPOLATIONS = ("bilinear", "bicubic", "nearest", "box", "hamming", "lanczos")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SIZE_HINT = "Give it with --input-size CHANNELS,HEIGHT,WIDTH, such as --input-size 3,224,224."
INPUT_HINT = "Set it with --input-size, --mean, --std, --interpolation and --crop-pct."

logger = logging.getLogger("dyce_export")


def _input_problem(given: Mapping[str, Any]) -> str | None:
    """Which of the values is out of its range, and what was expected."""
    size, mean, std = given.get("input_size"), given.get("mean"), given.get("std")
    if size is not None and (len(size) != 3 or any(not isinstance(n, int) or n < 1 for n in size)):
        return f"the input size is {tuple(size)}; expected channels, height and width, three positive integers"
    for name, values in (("mean", mean), ("std", std)):
        if values is not None and size is not None and len(values) not in (1, size[0]):
            return f"the {name} has {len(values)} values; expected one, or one for each of {size[0]} channels"
    if std is not None and any(value <= 0 for value in std):
        return f"the std is {tuple(std)}; expected positive numbers"
    if not 0 < given.get("crop_pct", 1) <= 1:
        return f"crop_pct is {given['crop_pct']}; expected a number over 0 and at most 1"
    if given.get("interpolation", "bilinear") not in INTERPOLATIONS:
        return f"the interpolation is {given['interpolation']!r}; expected one of {', '.join(INTERPOLATIONS)}"
    return None


@dataclass(frozen=True)
class InputOverrides:
    """What the user says about the input; None leaves it to the checkpoint or the model.

    Attributes:
        input_size: (channels, height, width), in pixels.
        mean, std: one number, or one per channel, on the scale 0 to 1.
        interpolation: one of :data:`INTERPOLATIONS`.
        crop_pct: edge of the centre crop divided by the edge that pictures are resized to, over 0 and at most 1.

    Raises:
        UsageError: a value is out of its range.
    """

    input_size: Size | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str | None = None
    crop_pct: float | None = None

    def __post_init__(self) -> None:
        """Check what can be checked without the model."""
        problem = _input_problem(self.given())
        if problem:
            raise UsageError(problem)

    def given(self) -> dict[str, Any]:
        """What was said, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Source:
    """A model ready to be captured: in eval mode, float32, on the CPU, frozen.

    Attributes:
        name: such as ``resnet50``.
        origin: ``timm:resnet50``, a file's name without its folder, or ``module pkg.mod:factory``.
        weights: where they came from, as in the manifest.
        module: takes float32 (N, C, H, W), returns logits; None if there is a ``program``.
        program: the content of a ``.pt2`` file.
        input_size: (C, H, W), in pixels.
        sha256: of the file with the weights, if there was one.
        class_names: in the order of the logits, if known.
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


def load_source(
    model: str | None,
    *,
    arch: str | None = None,
    factory: str | None = None,
    trust_pickle: bool = False,
    overrides: InputOverrides = InputOverrides(),
) -> Source:
    """Load what a user names. Never goes to the network.

    Args:
        model: ``timm:NAME`` (weights from a local cache, otherwise random), a checkpoint (``.pt``, ``.pth``, ``.tar``,
            ``.safetensors``), an exported program (``.pt2``; torch runs code from it, like a pickle), or None with
            ``factory``.
        arch: timm architecture of a checkpoint; goes before the one that the checkpoint names.
        factory: ``package.module:callable`` without arguments that returns the module. The working directory is
            importable.
        trust_pickle: allow a checkpoint to run code.
        overrides: goes before what the checkpoint says, which goes before what the model says.

    Raises:
        UsageError: the arguments do not fit together.
        ModelError: the model cannot be found, read or built, or its weights do not fit.
    """
    if arch and factory:
        raise UsageError("--arch and --factory both name the architecture; expected one of them")
    if not model:
        if not factory:
            raise UsageError(
                "no model was named", hint="Name a checkpoint, timm:NAME or --factory PACKAGE.MODULE:CALLABLE."
            )
        return _from_factory(factory, overrides)
    if (arch or factory) and (model.startswith("timm:") or model.endswith(".pt2")):
        raise UsageError(f"{model} names its own architecture; --arch and --factory go with a checkpoint")
    if model.startswith("timm:"):
        return _from_timm(model.removeprefix("timm:"), overrides)
    path = Path(model)
    if not path.exists():
        raise _not_found(model)
    if path.suffix == ".pt2":
        return _from_program(path, overrides)
    return _from_checkpoint(read_checkpoint(path, trust_pickle=trust_pickle), arch, factory, overrides)


def from_module(
    module: nn.Module,
    *,
    input_size: Size | None = None,
    name: str | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    interpolation: str | None = None,
    crop_pct: float | None = None,
    class_names: tuple[str, ...] | None = None,
) -> Source:
    """Take any module that maps float32 (N, C, H, W) to logits; a copy of it, the module itself stays as it is.

    Args:
        module: the classifier, with its trained weights.
        input_size: (C, H, W), in pixels; may be left out for timm's models, which know theirs.
        name: of the model; by default that of its class.
        mean, std, interpolation, crop_pct, class_names: as in :class:`InputOverrides` and :class:`Source`.

    Raises:
        UsageError: a value is out of its range.
        ModelError: this is no module, it cannot be copied, or its input size is not known.
    """
    if not isinstance(module, nn.Module):
        raise ModelError(f"expected a torch.nn.Module, got {type(module).__name__}")
    try:
        copied = copy.deepcopy(module)
    except Exception as error:  # whatever the user's __deepcopy__ raises
        raise ModelError(
            f"the module cannot be copied: {error}", hint="Detach tensors that are not parameters."
        ) from error
    overrides = InputOverrides(input_size, mean, std, interpolation, crop_pct)
    kind = type(module)
    origin = f"module {kind.__module__}:{kind.__qualname__}"
    return _source(copied, name or kind.__name__, origin, "module", overrides, class_names=class_names)


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
) -> Source:
    size, preprocessing = _describe_input({**(hints or {}), **overrides.given()}, _timm_input(module))
    classes = getattr(module, "num_classes", None)
    if class_names and isinstance(classes, int) and classes != len(class_names):
        logger.warning("%s names %d classes, the model has %d: ignoring the names", origin, len(class_names), classes)
        class_names = None
    module = module.to("cpu", torch.float32).eval().requires_grad_(False)
    return Source(name, origin, weights, module, None, size, preprocessing, sha256, class_names)


# Input and preprocessing


def _timm_input(module: nn.Module) -> dict[str, Any]:
    """What a timm model says about its input; nothing for other modules."""
    config = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None)
    if not isinstance(config, Mapping):
        return {}
    import timm.data

    data: Any = timm.data  # untyped
    return dict(data.resolve_data_config(pretrained_cfg=config))


def _describe_input(said: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[Size, Preprocessing]:
    """Input size and timm's evaluation transform, from what was said and otherwise from the model's configuration.

    Says aloud what has to be assumed.
    """
    size = said.get("input_size") or config.get("input_size")
    if size is None:
        raise ModelError("the size of the model's input is not known", hint=SIZE_HINT)
    problem = _input_problem({**said, "input_size": size})
    if problem:
        raise ModelError(problem, hint=INPUT_HINT)
    channels, height, width = size
    # The configuration's statistics are of no use to a model that was built for another number of channels.
    known = {k: v for k, v in config.items() if k not in ("mean", "std") or len(v) == channels}
    given = {**known, **said}
    assumed = {name: value for name, value in _standard(channels, height, width).items() if name not in given}
    if assumed:
        listed = ", ".join(f"{name} {value}" for name, value in assumed.items())
        logger.warning("nothing says how pictures are prepared for this model; assuming %s. %s", listed, INPUT_HINT)
    given = {**assumed, **given}
    mean, std = (tuple(map(float, given[key])) * (channels if len(given[key]) == 1 else 1) for key in ("mean", "std"))
    resize = _resize(height, width, given["crop_pct"], given.get("crop_mode"))
    return (channels, height, width), Preprocessing(resize, (height, width), given["interpolation"], mean, std)


def _standard(channels: int, height: int, width: int) -> dict[str, Any]:
    """ImageNet's convention, for three channels. Pictures under 128 pixels come at their size and are not cropped."""
    colour = channels == 3
    return {
        "mean": IMAGENET_MEAN if colour else (0.5,) * channels,
        "std": IMAGENET_STD if colour else (0.5,) * channels,
        "interpolation": "bilinear",
        "crop_pct": 0.875 if min(height, width) >= 128 else 1.0,
    }


def _resize(height: int, width: int, crop_pct: float, crop_mode: str | None) -> int | tuple[int, int]:
    """What ``timm.data.transforms_factory.transforms_imagenet_eval`` resizes to before it crops."""
    scaled = math.floor(height / crop_pct), math.floor(width / crop_pct)
    if crop_mode == "border":
        raise ModelError(
            "the model's crop_mode is 'border', which pads pictures; expected 'center' or 'squash'",
            hint="Choose weights that were evaluated without padding.",
        )
    if crop_mode == "squash":
        return scaled
    if scaled[0] != scaled[1]:
        logger.warning(
            "the input is %dx%d, not square: pictures are resized to %dx%d, whatever their shape",
            height,
            width,
            *scaled,
        )
        return scaled
    return scaled[0]


# timm


def _from_timm(name: str, overrides: InputOverrides) -> Source:
    config = _timm_config(name)
    file = _cached_weights(config)
    if file is None:
        logger.warning(
            "timm:%s: no pretrained weights in the local caches%s, and nothing is downloaded. The weights are RANDOM: "
            "the bundle will run, and its answers will mean nothing.",
            name,
            f" (they are {config.hf_hub_id} on the Hugging Face hub)" if config.hf_hub_id else "",
        )
        module = _create(name, config, overrides.input_size)
        return _source(module, name, f"timm:{name}", "random", overrides)
    overlay = {"file": str(file), "custom_load": file.suffix == ".npz"}
    module = _create(name, config, overrides.input_size, pretrained=True, pretrained_cfg_overlay=overlay)
    class_names = _imagenet_names() if config.num_classes == 1000 else None
    return _source(
        module, name, f"timm:{name}", "pretrained", overrides, sha256=file_sha256(file), class_names=class_names
    )


def _timm_config(name: str) -> Any:
    """timm's configuration of an architecture, which may carry a tag, such as ``resnet50.a1_in1k``."""
    import timm

    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        near = difflib.get_close_matches(base, timm.list_models(), n=3)
        raise ModelError(
            f"timm {timm.__version__} has no model named {base!r}",
            hint=f"Nearest names: {', '.join(near)}." if near else "timm.list_models() lists all names.",
        )
    try:
        return timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        tags = [known.partition(".")[2] for known in timm.list_models(f"{base}.*", pretrained=True)]
        raise ModelError(f"{base} has no weights tagged {tag!r}; its tags are: {', '.join(tags) or 'none'}") from error


def _cached_weights(config: Any) -> Path | None:
    """The pretrained weights, if an earlier download left them in the caches of the Hugging Face or the torch hub."""
    from huggingface_hub import try_to_load_from_cache

    repository, _, revision = (config.hf_hub_id or "").partition("@")
    names = [config.hf_hub_filename] if config.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
    for name in names if repository else ():
        file = try_to_load_from_cache(repository, name, revision=revision or None)
        if isinstance(file, str):
            return Path(file)
    if config.url:
        name = config.url[1] if isinstance(config.url, tuple) else Path(urlparse(config.url).path).name
        path = Path(torch.hub.get_dir(), "checkpoints", name)
        return path if name and path.is_file() else None
    return None


@contextmanager
def _seeded() -> Iterator[None]:
    """Random weights are the same every time, and the caller's random numbers go on as if nothing had happened."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        yield


def _create(name: str, config: Any, size: Size | None, **options: Any) -> nn.Module:
    import timm

    if size is not None:
        options["in_chans"] = size[0]
        if config.fixed_input_size and size[1:] != tuple(config.input_size[1:]):
            options["img_size"] = size[1:]
    try:
        with _seeded():
            module: nn.Module = timm.create_model(name, **options)
    except Exception as error:  # timm asserts and raises in many ways
        at = f" for an input of {'x'.join(map(str, size))}" if size else ""
        raise ModelError(f"timm cannot build {name}{at}: {type(error).__name__}: {error}") from error
    if getattr(module, "num_classes", None) == 0:
        raise ModelError(
            f"{name} has no classifier (timm gives it 0 classes); expected a trained image classifier",
            hint="Train a classifier on it, and name that checkpoint with --arch.",
        )
    return module


def _imagenet_names() -> tuple[str, ...]:
    import timm.data

    data: Any = timm.data  # untyped
    info = data.ImageNetInfo()
    names, synsets = info.label_descriptions(), info.label_names()
    # "crane" is a bird and a machine.
    return tuple(n if names.count(n) == 1 else f"{n} ({s})" for n, s in zip(names, synsets, strict=True))


# Checkpoints


def _from_checkpoint(
    checkpoint: Checkpoint, arch: str | None, factory: str | None, overrides: InputOverrides
) -> Source:
    if checkpoint.module is not None and (arch or factory):
        checkpoint = replace(checkpoint, state_dict=strip_prefixes(checkpoint.module.state_dict()), module=None)
    if not (arch or factory) and checkpoint.module is None:
        arch = _own_arch(checkpoint)
    if factory:
        name, module = factory.rpartition(":")[2], _call_factory(factory)
        load_strictly(module, checkpoint, what=factory, hint="Check that the factory builds the model that was saved.")
    elif arch:
        name = arch.removeprefix("timm:")
        module, checkpoint = _timm_with_weights(name, checkpoint, overrides)
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
            hint="Name it with --arch (a timm model) or --factory PACKAGE.MODULE:CALLABLE (your own).",
        )
    return arch


def _timm_with_weights(arch: str, checkpoint: Checkpoint, overrides: InputOverrides) -> tuple[nn.Module, Checkpoint]:
    """A timm model with as many classes and channels as the weights have, and the checkpoint as it fits the model."""
    config, weights, hints = _timm_config(arch), checkpoint.state_dict, checkpoint.hints
    size = overrides.input_size or (tuple(hints["input_size"]) if "input_size" in hints else None)
    classifier = _first_weight(config.classifier, weights)
    classes = hints.get("num_classes") if classifier is None else classifier.shape[0]
    options = {} if classes is None else {"num_classes": classes}
    module = _create(arch, config, size, **options)
    own, given = (_first_weight(config.first_conv, tensors) for tensors in (module.state_dict(), weights))
    if overrides.input_size is None and own is not None and given is not None and own.shape[1] != given.shape[1]:
        known = size or config.input_size
        # A stem may take several values of each channel.
        size = (known[0] * given.shape[1] // own.shape[1], *known[1:])
        module = _create(arch, config, size, **options)
        checkpoint = replace(checkpoint, hints={**hints, "input_size": size})
    found = differences(module, weights)
    if found:
        translated = _translated(module, weights, may_resize=overrides.input_size is not None)
        checkpoint = replace(checkpoint, state_dict=translated or weights)
    sized = overrides.input_size or any(d.file and d.model and "pos" in d.name for d in found)
    hint = "Check --arch" + (", and --input-size: it was perhaps trained for another one." if sized else ".")
    load_strictly(module, checkpoint, what=f"timm:{arch}", hint=hint)
    return module, checkpoint


def _first_weight(names: Any, tensors: Mapping[str, Tensor]) -> Tensor | None:
    """The weight of the first of some modules that timm names in its configuration: one, several or none."""
    names = (names,) if isinstance(names, str) else names or ()
    return next((tensors[f"{n}.weight"] for n in names if f"{n}.weight" in tensors), None)


def _translated(module: nn.Module, weights: dict[str, Tensor], *, may_resize: bool) -> dict[str, Tensor] | None:
    """What timm's own filter for older and foreign names makes of the weights; None if that does not fit either.

    The filters also interpolate tables of positions to the model's input size, and even filters to its patch size:
    the first is fine where the user asked for a size, the second never.
    """
    translate = getattr(sys.modules[type(module).__module__], "checkpoint_filter_fn", None)
    if translate is None:
        return None
    try:
        translated: dict[str, Tensor] = translate(dict(weights), module)
    except Exception:  # a filter may raise anything on weights of another architecture
        return None
    resized = [n for n, tensor in translated.items() if n in weights and tensor.numel() != weights[n].numel()]
    if differences(module, translated) or any(not may_resize or "pos" not in n for n in resized):
        return None
    if resized:
        logger.warning("resized what depends on the input size: %s", ", ".join(resized))
    return translated


def _not_found(model: str) -> ModelError:
    import timm

    known = timm.is_model(model.partition(".")[0])
    near = f"Did you mean timm:{model}?" if known else "Name a checkpoint file, or a timm model as timm:NAME."
    return ModelError(f"there is no file {model}, and it does not begin with timm:", hint=near)


# Factories and exported programs


def _from_factory(factory: str, overrides: InputOverrides) -> Source:
    return _source(_call_factory(factory), factory.rpartition(":")[2], f"module {factory}", "module", overrides)


def _call_factory(factory: str) -> nn.Module:
    """Import ``package.module:name`` and return the module that it is or makes."""
    path, _, name = factory.partition(":")
    if not path or not name:
        raise UsageError(f"the factory is {factory!r}; expected PACKAGE.MODULE:CALLABLE")
    with working_directory_importable(), _seeded():
        try:
            imported = importlib.import_module(path)
        except Exception as error:  # importing runs the user's code
            raise ModelError(f"cannot import {path!r} of the factory {factory}: {_reason(error)}") from error
        try:
            made = operator.attrgetter(name)(imported)
        except AttributeError as error:
            raise ModelError(f"module {path!r} has no {name!r}, which the factory {factory} names") from error
        if not isinstance(made, nn.Module):
            if not callable(made):
                raise ModelError(f"the factory {factory} is a {type(made).__name__}; expected a callable or a module")
            try:
                made = made()
            except Exception as error:  # the user's code
                raise ModelError(
                    f"the factory {factory} raised {_reason(error)}", hint="It is called without arguments."
                ) from error
    if not isinstance(made, nn.Module):
        raise ModelError(f"the factory {factory} returned a {type(made).__name__}; expected a torch.nn.Module")
    return made


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _from_program(path: Path, overrides: InputOverrides) -> Source:
    # Asked first, because torch logs tracebacks about files of another kind.
    if not zipfile.is_zipfile(path) or not any(n.endswith("/archive_format") for n in zipfile.ZipFile(path).namelist()):
        raise ModelError(f"{path} is truncated or not an exported program", hint="Write it with torch.export.save.")
    try:
        program = torch.export.load(path)
    except Exception as error:  # torch raises in many ways on foreign archives
        raise ModelError(f"{path} cannot be loaded as an exported program: {_reason(error)}") from error
    size = _program_input(path.name, program)
    asked = overrides.input_size or size
    if asked != size:
        raise ModelError(f"{path.name} takes an input of {size}, which cannot be changed to {asked}")
    size, preprocessing = _describe_input({**overrides.given(), "input_size": size}, {})
    return Source(path.stem, path.name, "checkpoint", None, program, size, preprocessing, file_sha256(path))


def _program_input(file: str, program: ExportedProgram) -> Size:
    """(C, H, W) of the only input."""
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
