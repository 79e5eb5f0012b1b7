"""The input of a model: its size, and how images are prepared for it."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from torch import nn

from dyce_export.sources.places import attribute
from dyce_runtime.bundle.manifest import INTERPOLATIONS, Preprocessing
from dyce_runtime.errors import ModelError, UsageError

Size = tuple[int, int, int]
Fit = Literal["stretch", "cover", "contain"]

CROP_MODES = ("center", "squash", "border")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SIZE_HINT = "Give it with --input-size CHANNELS,HEIGHT,WIDTH, such as --input-size 3,224,224."
INPUT_HINT = "Set it with --input-size, --mean, --std, --interpolation, --crop-pct and --crop-mode."

# Several copies of one image have to fit into memory.
_MOST_VALUES = 1 << 28
_LEAST_CROP = 0.01

logger = logging.getLogger("dyce_export")


class Input(NamedTuple):
    """The input size in pixels, (channels, height, width), and the preprocessing of images."""

    size: Size
    preprocessing: Preprocessing


@dataclass(frozen=True)
class InputOverrides:
    """Settings of the input given by the user; None leaves a setting to the checkpoint or the model.

    Attributes:
        input_size: (channels, height, width), in pixels.
        mean, std: one number, or one per channel, for pixels on the scale 0 to 1.
        interpolation: one of :data:`dyce_runtime.bundle.manifest.INTERPOLATIONS`.
        crop_pct: edge of the centre crop divided by the edge that images are resized to, from 0.01 to 1.
        crop_mode: one of :data:`CROP_MODES`, named as in timm. ``center`` keeps the aspect ratio and crops the longer
            side, ``squash`` changes the aspect ratio, ``border`` (letterbox) keeps it and pads with the mean.

    Raises:
        UsageError: a value is out of its range.
    """

    input_size: Size | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str | None = None
    crop_pct: float | None = None
    crop_mode: str | None = None

    def __post_init__(self) -> None:
        """Check all settings that can be checked without the model."""
        problem = _input_problem(self.given())
        if problem:
            raise UsageError(problem.message, hint=problem.hint)

    def given(self) -> dict[str, Any]:
        """Return the settings that were given, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def timm_input(module: nn.Module) -> dict[str, Any]:
    """Return a timm model's own description of its input; empty for other modules."""
    config = attribute(module, "pretrained_cfg") or attribute(module, "default_cfg")
    if not isinstance(config, Mapping):
        return {}
    import timm.data

    data: Any = timm.data  # untyped
    return dict(data.resolve_data_config(pretrained_cfg=config))


def describe_input(said: Mapping[str, Any], config: Mapping[str, Any]) -> Input:
    """Combine what was given with the model's configuration into the input size and timm's evaluation transform.

    Logs a warning that lists the values that had to be assumed.

    Args:
        said: settings of the user or the checkpoint; they take precedence.
        config: settings of the model.

    Raises:
        ModelError: the input size is not known, or a value is out of its range.
    """
    size = said.get("input_size") or config.get("input_size")
    if size is None:
        raise ModelError("the size of the model's input is not known", hint=SIZE_HINT)
    channels, height, width = _checked({**said, "input_size": size})["input_size"]
    # The configuration's mean and std cannot be used by a model that was built for another number of channels.
    known = {k: v for k, v in config.items() if k not in ("mean", "std") or len(v) == channels}
    given = {**known, **said}
    assumed = {name: value for name, value in _standard(channels, height, width).items() if name not in given}
    if assumed:
        listed = ", ".join(f"{name} {value}" for name, value in assumed.items())
        options = ", ".join(f"--{name.replace('_', '-')}" for name in assumed)
        logger.warning(
            "the preprocessing of this model is not fully specified; assuming %s. If it was trained otherwise, give %s",
            listed,
            options,
        )
    given = _checked({**assumed, **given, "input_size": size})
    mean, std = (tuple(map(float, given[key])) * (channels if len(given[key]) == 1 else 1) for key in ("mean", "std"))
    resize, fit = _resize(height, width, given["crop_pct"], given.get("crop_mode"))
    preprocessing = Preprocessing(resize, (height, width), given["interpolation"], mean, std, fit)
    return Input((channels, height, width), preprocessing)


def _standard(channels: int, height: int, width: int) -> dict[str, Any]:
    """Return ImageNet's convention if there are three channels. Images under 128 pixels are not cropped."""
    colour = channels == 3
    return {
        "mean": IMAGENET_MEAN if colour else (0.5,) * channels,
        "std": IMAGENET_STD if colour else (0.5,) * channels,
        "interpolation": "bilinear",
        "crop_pct": 0.875 if min(height, width) >= 128 else 1.0,
    }


def _resize(height: int, width: int, crop_pct: float, crop_mode: str | None) -> tuple[int | tuple[int, int], Fit]:
    """Return the size to which ``timm.data.transforms_factory.transforms_imagenet_eval`` resizes, and how it fits."""
    scaled = math.floor(height / crop_pct), math.floor(width / crop_pct)
    if crop_mode == "squash":
        return scaled, "stretch"
    if crop_mode == "border":
        return scaled, "contain"
    return (scaled[0], "stretch") if scaled[0] == scaled[1] else (scaled, "cover")


class _Problem(NamedTuple):
    message: str
    hint: str = ""


def _checked(given: dict[str, Any]) -> dict[str, Any]:
    """Return the values unchanged; raise ModelError if one is out of its range."""
    problem = _input_problem(given)
    if problem:
        raise ModelError(problem.message, hint=problem.hint or INPUT_HINT)
    return given


def _input_problem(given: Mapping[str, Any]) -> _Problem | None:
    """Return the first value that is out of its range, with what was expected; None if there is none."""
    size, mean, std = given.get("input_size"), given.get("mean"), given.get("std")
    if size is not None and (len(size) != 3 or any(not isinstance(n, int) or n < 1 for n in size)):
        return _Problem(
            f"the input size is {tuple(size)}; expected channels, height and width, three positive integers"
        )
    if size is not None and math.prod(size) > _MOST_VALUES:
        return _Problem(
            f"the input size is {tuple(size)}; expected at most {_MOST_VALUES:,} values, which are 1 GB as float32"
        )
    for name, values in (("mean", mean), ("std", std)):
        if values is not None and not _are_numbers(values):
            return _Problem(f"the {name} is {values!r}; expected numbers, one or one per channel, such as (0.5,)")
        if values is not None and size is not None and len(values) not in (1, size[0]):
            return _Problem(f"the {name} has {len(values)} values; expected one, or one for each of {size[0]} channels")
    if std is not None and any(value <= 0 for value in std):
        return _Problem(f"the std is {tuple(std)}; expected positive numbers")
    if not _LEAST_CROP <= given.get("crop_pct", 1) <= 1:
        return _Problem(
            f"crop_pct is {given['crop_pct']}; expected a number from {_LEAST_CROP} to 1: a picture is resized to the "
            "crop divided by it"
        )
    for name, known in (("interpolation", INTERPOLATIONS), ("crop_mode", CROP_MODES)):
        if given.get(name, known[0]) not in known:
            return _Problem(f"the {name} is {given[name]!r}; expected one of {', '.join(known)}")
    return _scale_problem(mean, std)


def _are_numbers(values: Any) -> bool:
    try:
        return len(values) > 0 and all(math.isfinite(value) for value in values)
    except TypeError:
        return False


def _scale_problem(mean: Iterable[float] | None, std: Iterable[float] | None) -> _Problem | None:
    """Check the scale: pixels are numbers from 0 to 1 here, so neither their mean nor their std exceeds 1."""
    given = {name: tuple(values) for name, values in (("mean", mean), ("std", std)) if values is not None}
    wrong = [name for name, values in given.items() if any(abs(value) > 1 for value in values)]
    if not wrong:
        return None
    divided = {name: ",".join(f"{value / 255:.6g}" for value in values) for name, values in given.items()}
    hint = f"Divided by 255: {' '.join(f'--{name} {divided[name]}' for name in wrong)}."
    if wrong == ["mean"] and "std" in given:
        hint += f" If the std is on the scale 0 to 255 as well: --std {divided['std']}."
    found = " and ".join(f"the {name} {given[name]}" for name in wrong)
    return _Problem(f"found {found}; expected numbers on the scale 0 to 1, of pixels divided by 255", hint)
