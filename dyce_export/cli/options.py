"""What several verbs ask about a model and its pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dyce_runtime.errors import UsageError

if TYPE_CHECKING:
    from dyce_export.inputs import InputOverrides
    from dyce_export.pipeline import Captured
    from dyce_export.progress import Progress
    from dyce_runtime.bundle import Bundle

Arch = Annotated[str | None, typer.Option(help="timm architecture of a checkpoint.", show_default=False)]
Factory = Annotated[
    str | None, typer.Option("--model", help="package.module:function that makes the model.", show_default=False)
]
Classes = Annotated[
    Path | None, typer.Option(help="File that maps class folders to the model's classes.", show_default=False)
]
InputSize = Annotated[str | None, typer.Option(help="Channels,height,width.", show_default=False)]
Mean = Annotated[str | None, typer.Option(help="Per channel, on the scale 0 to 1.", show_default=False)]
Std = Annotated[str | None, typer.Option(help="Per channel, on the scale 0 to 1.", show_default=False)]
Interpolation = Annotated[str | None, typer.Option(help="Of the resize: bilinear, bicubic, …", show_default=False)]
CropPct = Annotated[float | None, typer.Option(help="Crop edge divided by the edge resized to.", show_default=False)]
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
        help="How the classes of savers are those of the model: `names`, or a JSON file; the same without it.",
        show_default=False,
    ),
]
Task = Annotated[str, typer.Option(help="What the outputs mean; so far single-label alone.")]
AllowSuspicious = Annotated[
    bool,
    typer.Option(
        "--allow-suspicious", help="Go on where labels and answers do not go together; the bundle and report say so."
    ),
]
TrustPickle = Annotated[bool, typer.Option("--trust-pickle", help="Allow a checkpoint or .pt2 file to run code.")]


def overrides_of(
    input_size: str | None,
    mean: str | None,
    std: str | None,
    interpolation: str | None,
    crop_pct: float | None,
    crop_mode: str | None,
) -> InputOverrides:
    """What was said about the input. Raises UsageError."""
    from dyce_export.inputs import InputOverrides

    def numbers(text: str | None, kind: type, option: str) -> Any:
        try:
            return None if text is None else tuple(kind(word) for word in text.split(","))
        except ValueError:
            raise UsageError(f"{option} is {text!r}; expected numbers with commas between") from None

    size = numbers(input_size, int, "--input-size")
    statistics = numbers(mean, float, "--mean"), numbers(std, float, "--std")
    return InputOverrides(size, *statistics, interpolation, crop_pct, crop_mode)


def open_model(
    model: str | None,
    arch: str | None,
    factory: str | None,
    overrides: InputOverrides,
    progress: Progress,
    *,
    bundle: bool,
    trust_pickle: bool,
) -> Captured | Bundle:
    """A model with its exit points, or a bundle if that is allowed."""
    from dyce_export.pipeline import capture_source
    from dyce_export.sources import load_source
    from dyce_runtime.bundle import is_bundle, open_bundle

    with progress.stage("load"):
        if bundle and model is not None and is_bundle(model):
            return open_bundle(model)
        source = load_source(model, arch=arch, factory=factory, trust_pickle=trust_pickle, overrides=overrides)
    return capture_source(source, progress)
