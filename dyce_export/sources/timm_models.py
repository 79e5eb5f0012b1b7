"""timm models: finding them, building them without network access, fitting checkpoints to them."""

from __future__ import annotations

import difflib
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from dyce_export.sources.checkpoints import Checkpoint
from dyce_export.sources.inputs import Size
from dyce_export.sources.weights import differences, load_strictly, weights_for
from dyce_runtime.errors import ModelError

logger = logging.getLogger("dyce_export")


class Built(NamedTuple):
    """A timm model.

    Attributes:
        module: the model.
        file: the file with its pretrained weights; None if the weights are random.
        class_names: class names in the order of the logits, if known.
    """

    module: nn.Module
    file: Path | None
    class_names: tuple[str, ...] | None


@contextmanager
def seeded() -> Iterator[None]:
    """Seed torch within the block, so that random weights are reproducible, and restore the caller's random state."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        yield


def current_name(name: str) -> str:
    """Return timm's current name of a model, which may be given by a former name; log the change.

    Args:
        name: name without ``timm:``, possibly with a tag.

    Raises:
        ModelError: timm has removed the model.
    """
    import timm.models

    models: Any = timm.models  # untyped
    base, _, tag = name.partition(".")
    former: Mapping[str, str | None] = getattr(models, "get_deprecated_models", dict)()
    if base not in former:
        return name
    current = former[base]
    if current is None:
        raise ModelError(
            f"timm {timm.__version__} has removed the model {base!r}", hint="timm.list_models() lists all names."
        )
    if tag:
        current = f"{current.partition('.')[0]}.{tag}"
    logger.info("timm:%s is now called %s", name, current)
    return current


def build_timm(name: str, size: Size | None) -> Built:
    """Build a model by its current name, with weights from a local cache, or else random ones.

    Raises:
        ModelError: timm does not know or cannot build the model.
    """
    config = _config(name)
    file = _cached_weights(config)
    if file is None:
        logger.warning(
            "timm:%s: no pretrained weights in the local caches%s, and nothing is downloaded. The weights are RANDOM: "
            "the bundle will run, and its answers will mean nothing.",
            name,
            f" (they are {config.hf_hub_id} on the Hugging Face hub)" if config.hf_hub_id else "",
        )
        return Built(_create(name, config, size), None, None)
    overlay = {"file": str(file), "custom_load": file.suffix == ".npz"}
    module = _create(name, config, size, pretrained=True, pretrained_cfg_overlay=overlay)
    return Built(module, file, _imagenet_names() if config.num_classes == 1000 else None)


def build_timm_for(checkpoint: Checkpoint, arch: str, asked: Size | None) -> tuple[nn.Module, Checkpoint]:
    """Build a model with the weights of a checkpoint; return it with the checkpoint adapted to the model.

    Args:
        arch: current name of the model. The model gets as many classes and channels as the weights have.
        asked: the input size that the user wants.

    Raises:
        ModelError: timm does not know or cannot build the model, or the weights do not fit.
    """
    config, hints = _config(arch), checkpoint.hints
    published = _create(arch, config, None, num_classes=config.num_classes or 1)  # for the names of its tensors
    checkpoint = weights_for(checkpoint, published, what=f"timm:{arch}", any_shape=True)
    weights = checkpoint.state_dict
    size = asked or (tuple(hints["input_size"]) if "input_size" in hints else None)
    classifier = _first_weight(config.classifier, weights)
    classes = hints.get("num_classes") if classifier is None else classifier.shape[0]
    options = {} if classes is None else {"num_classes": classes}
    module = _create(arch, config, size, **options)
    own, given = (_first_weight(config.first_conv, tensors) for tensors in (module.state_dict(), weights))
    if asked is None and own is not None and given is not None and own.shape[1] != given.shape[1]:
        known = size or config.input_size
        # A stem may read several values per channel.
        size = (known[0] * given.shape[1] // own.shape[1], *known[1:])
        module = _create(arch, config, size, **options)
        checkpoint = replace(checkpoint, hints={**hints, "input_size": size})
    found = differences(module, weights)
    if found:
        translated = _translated(module, weights, may_resize=asked is not None)
        checkpoint = replace(checkpoint, state_dict=translated or weights)
    sized = asked or any(d.file and d.model and "pos" in d.name for d in found)
    hint = "Check --arch" + (", and --input-size: it was perhaps trained for another one." if sized else ".")
    if found and (twin := _torchvision_twin(arch, checkpoint)):
        hint = (
            f"These are the names of torchvision's {twin}: --model torchvision.models:{twin} builds that, or --model "
        )
        hint += "with a function of your own where it has other classes."
    load_strictly(module, checkpoint, what=f"timm:{arch}", hint=hint)
    return module, checkpoint


def _torchvision_twin(arch: str, checkpoint: Checkpoint) -> str | None:
    """Return the torchvision model with a similar name and exactly the tensor names of the checkpoint, if any."""
    from torchvision import models

    known: list[str] = models.list_models(module=models)
    for name in difflib.get_close_matches(arch.partition(".")[0], known, n=3, cutoff=0.5):
        try:
            with torch.device("meta"):
                own = models.get_model(name, weights=None).state_dict()
        except Exception:  # some models compute their initial weights, which fails on the meta device
            continue
        if own.keys() == checkpoint.state_dict.keys():
            return name
    return None


def _config(name: str) -> Any:
    """Return timm's configuration of an architecture, whose name may have a tag, such as ``resnet50.a1_in1k``."""
    import timm

    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        near = difflib.get_close_matches(base, timm.list_models(), n=3)
        raise ModelError(
            f"timm {timm.__version__} has no model named {base!r}",
            hint=f"Nearest names: {', '.join(near)}." if near else "timm.list_models() lists all names.",
        )
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        tags = [known.partition(".")[2] for known in timm.list_models(f"{base}.*", pretrained=True)]
        raise ModelError(f"{base} has no weights tagged {tag!r}; its tags are: {', '.join(tags) or 'none'}") from error
    if config is None:
        raise ModelError(
            f"timm {timm.__version__} builds {base!r} but has no configuration for it; it may be a former name",
            hint="timm.list_models() lists the current names.",
        )
    return config


def _cached_weights(config: Any) -> Path | None:
    """Return pretrained weights that an earlier download left in the cache of the Hugging Face hub or torch hub."""
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


def _create(name: str, config: Any, size: Size | None, **options: Any) -> nn.Module:
    import timm

    if size is not None:
        options["in_chans"] = size[0]
        if config.fixed_input_size and size[1:] != tuple(config.input_size[1:]):
            options["img_size"] = size[1:]
    try:
        with seeded():
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
    # Several classes may share a name: "crane" is a bird and a machine.
    return tuple(n if names.count(n) == 1 else f"{n} ({s})" for n, s in zip(names, synsets, strict=True))


def _first_weight(names: Any, tensors: Mapping[str, Tensor]) -> Tensor | None:
    """Return the weight of the first of some modules, which timm's configuration gives as one name, several or none."""
    names = (names,) if isinstance(names, str) else names or ()
    return next((tensors[f"{n}.weight"] for n in names if f"{n}.weight" in tensors), None)


def _translated(module: nn.Module, weights: dict[str, Tensor], *, may_resize: bool) -> dict[str, Tensor] | None:
    """Convert weights with timm's own filter for older and foreign names; None if the result does not fit either.

    The filters also interpolate position embeddings to the model's input size, and even filters to its patch size.
    The former is accepted only if the user asked for a size, the latter never.
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
        logger.warning("resized tensors that depend on the input size: %s", ", ".join(resized))
    return translated
