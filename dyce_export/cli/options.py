"""Options about a model and its images that several verbs share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dyce_runtime.errors import DataError, UsageError

if TYPE_CHECKING:
    from dyce_export.prepare import Captured
    from dyce_export.progress import Progress
    from dyce_export.sources.inputs import InputOverrides
    from dyce_runtime.bundle.reader import Bundle

_NAMES = "Expected the name of one class per line, in the order of the model's outputs."

Arch = Annotated[
    str | None, typer.Option(help="Name of the timm architecture that the checkpoint belongs to.", show_default=False)
]
Factory = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="Your own model, as package.module:function; the function takes nothing and returns the module.",
        show_default=False,
    ),
]
Classes = Annotated[
    Path | None, typer.Option(help="File that maps class folders to the model's classes.", show_default=False)
]
ClassNames = Annotated[
    Path | None,
    typer.Option(
        help="File with the names of the model's classes in the order of its outputs, one per line.", show_default=False
    ),
]
InputSize = Annotated[
    str | None, typer.Option(help="Input of the model, as channels,height,width: 3,224,224.", show_default=False)
]
Mean = Annotated[
    str | None, typer.Option(help="Mean per channel, for pixels from 0 to 1: 0.485,0.456,0.406.", show_default=False)
]
Std = Annotated[
    str | None,
    typer.Option(help="Standard deviation per channel, for pixels from 0 to 1: 0.229,0.224,0.225.", show_default=False),
]
Interpolation = Annotated[
    str | None, typer.Option(help="How pictures are resized, such as bilinear, bicubic or nearest.", show_default=False)
]
CropPct = Annotated[
    float | None,
    typer.Option(help="Size of the crop divided by the size resized to: 0.875 is 224 of 256.", show_default=False),
]
CropMode = Annotated[
    str | None,
    typer.Option(
        help="Pictures of another shape: center cuts off, squash changes the shape, border (letterbox) fills up.",
        show_default=False,
    ),
]
SaverClasses = Annotated[
    str | None,
    typer.Option(
        help="Which class of the model each class of a saver is: `names`, or a JSON file. Default: the same order.",
        show_default=False,
    ),
]
Task = Annotated[str, typer.Option(help="What the outputs mean. Only single-label is supported.")]
AllowSuspicious = Annotated[
    bool,
    typer.Option(
        "--allow-suspicious",
        help="Go on although labels and answers do not fit together; the bundle and its report then say so.",
    ),
]
TrustPickle = Annotated[
    bool, typer.Option("--trust-pickle", help="Load files whose loading can run any code they contain.")
]


def overrides_of(
    input_size: str | None,
    mean: str | None,
    std: str | None,
    interpolation: str | None,
    crop_pct: float | None,
    crop_mode: str | None,
) -> InputOverrides:
    """Parse the options about the input. Raises UsageError."""
    from dyce_export.sources.inputs import InputOverrides

    def numbers(text: str | None, kind: type, option: str) -> Any:
        try:
            return None if text is None else tuple(kind(word) for word in text.split(","))
        except ValueError:
            raise UsageError(f"{option} is {text!r}; expected numbers with commas between") from None

    size = numbers(input_size, int, "--input-size")
    statistics = numbers(mean, float, "--mean"), numbers(std, float, "--std")
    return InputOverrides(size, *statistics, interpolation, crop_pct, crop_mode)


def _names_in(path: Path) -> tuple[str, ...]:
    """Return the lines of a file, without trailing empty ones. Raises DataError."""
    try:
        lines = path.read_text(encoding="utf-8").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as names of classes: {error}") from error
    names = tuple(line.strip() for line in lines)
    if not all(names):
        raise DataError(f"{path}: line {names.index('') + 1} is empty" if names else f"{path} is empty", hint=_NAMES)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{path} has {twice!r} twice", hint=_NAMES)
    return names


def open_model(
    model: str | None,
    arch: str | None,
    factory: str | None,
    overrides: InputOverrides,
    progress: Progress,
    *,
    bundle: bool,
    class_names: Path | None = None,
    trust_pickle: bool,
) -> Captured | Bundle:
    """Load and capture a model, or open a bundle if that is allowed.

    Args:
        bundle: whether ``model`` may be a bundle.

    Raises:
        DyceError: the model cannot be loaded or captured; or the names of the classes do not fit it.
    """
    from dyce_export.prepare import capture_source
    from dyce_export.sources.source import load_source
    from dyce_runtime.bundle.reader import is_bundle, open_bundle

    with progress.stage("load"):
        if bundle and model is not None and is_bundle(model):
            if class_names is not None:
                raise UsageError("--class-names goes with a model; a bundle has its names already")
            return open_bundle(model)
        source = load_source(model, arch=arch, factory=factory, trust_pickle=trust_pickle, overrides=overrides)
        if class_names is not None:
            source = replace(source, class_names=_names_in(class_names))
    captured = capture_source(source, progress)
    if class_names is not None:
        _check_count(class_names, source.class_names, captured)
    return captured


def _check_count(path: Path, names: tuple[str, ...] | None, captured: Captured) -> None:
    from dyce_export.graph.capture import output_nodes

    classes = int(output_nodes(captured.program)[0].meta["val"].shape[1])
    if names is None or len(names) != classes:
        raise DataError(f"{path} names {len(names or ())} classes; the model has {classes}", hint=_NAMES)
