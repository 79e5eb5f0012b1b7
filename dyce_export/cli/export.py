"""``dyce export`` and ``dyce-export``: from a model to a verified bundle."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dyce_calibration.launcher import is_main
from dyce_export.cli.console import (
    Json,
    MaxPrecisionLoss,
    MinAgreement,
    Quiet,
    Verbose,
    drawn_progress,
    out,
    print_json,
    print_table,
    set_up,
)
from dyce_export.cli.inspect import show_configurations, verification_line
from dyce_runtime.errors import ModelError, UsageError

if TYPE_CHECKING:
    from dyce_export.exit_points import ExitPoints
    from dyce_export.inputs import InputOverrides
    from dyce_export.pipeline import Export
    from dyce_export.sources import Source

HELP = (
    "Make a model early-exit: split it at the exit points, train heads, choose configurations, verify, write a bundle."
)


def command(
    model: Annotated[
        str | None, typer.Argument(help="Checkpoint (.pt, .pth, .safetensors), .pt2 or timm:NAME.", show_default=False)
    ] = None,
    exits: Annotated[
        str | None,
        typer.Option(help="Exit points: numbers or module names, such as 3,7,12; or auto.", show_default=False),
    ] = None,
    max_exits: Annotated[int, typer.Option(min=1, help="How many exits auto chooses at most.")] = 4,
    heads: Annotated[
        str, typer.Option(help="Types of heads at every exit, such as mlp1x1000,mlp3x500; or all.")
    ] = "mlp1x1000",
    list_exits: Annotated[
        bool, typer.Option("--list-exits", help="Print the exit points of the model and stop.")
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(
            help="Pictures that fit the heads: a folder of class folders, .npz, MNIST-style folder or `digits`.",
            show_default=False,
        ),
    ] = None,
    val: Annotated[
        str | None,
        typer.Option(
            help="Pictures that the model has never seen: they choose the configurations.", show_default=False
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The bundle; MODEL.dyce here without it.", show_default=False)
    ] = None,
    arch: Annotated[str | None, typer.Option(help="timm architecture of a checkpoint.", show_default=False)] = None,
    factory: Annotated[
        str | None, typer.Option("--model", help="package.module:function that makes the model.", show_default=False)
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(help="File that maps class folders to the model's classes.", show_default=False)
    ] = None,
    input_size: Annotated[str | None, typer.Option(help="Channels,height,width.", show_default=False)] = None,
    mean: Annotated[str | None, typer.Option(help="Per channel, on the scale 0 to 1.", show_default=False)] = None,
    std: Annotated[str | None, typer.Option(help="Per channel, on the scale 0 to 1.", show_default=False)] = None,
    interpolation: Annotated[
        str | None, typer.Option(help="Of the resize: bilinear, bicubic, …", show_default=False)
    ] = None,
    crop_pct: Annotated[
        float | None, typer.Option(help="Crop edge divided by the edge resized to.", show_default=False)
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs of head training.", show_default=False)] = None,
    seed: Annotated[int, typer.Option(help="Of splits and head training.")] = 0,
    tolerance: Annotated[
        float | None,
        typer.Option(min=0, help="Largest relative error against torch; 1e-4 without it.", show_default=False),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="Precisions to hold beside float32: bfloat16, float16, int8, uint8; several with commas.",
            show_default=False,
        ),
    ] = None,
    min_agreement: MinAgreement = 0.99,
    max_precision_loss: MaxPrecisionLoss = 0.01,
    trust_pickle: Annotated[
        bool, typer.Option("--trust-pickle", help="Allow a checkpoint or .pt2 file to run code.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the bundle if it exists.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything that can be checked at once, and stop.")
    ] = False,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Export and print."""
    set_up(verbose=verbose, quiet=quiet)
    if model is None and factory is None:
        raise UsageError("no model was given; expected a checkpoint, timm:NAME or --model", hint="`dyce export --help`")
    if not list_exits and exits is None:
        raise UsageError("no exits were given", hint="Choose some with --exits 3,7,12; --list-exits prints them all.")
    if list_exits and exits is not None:
        raise UsageError("--list-exits and --exits do not go together", hint="--list-exits only prints.")
    if val is not None and data is None:
        raise UsageError(
            "--val was given without --data", hint="--data fits the heads; --val then chooses configurations."
        )
    require_extra()
    from dyce_calibration.heads import TYPES
    from dyce_export.pipeline import Options, capture_source, prepare, write_bundle
    from dyce_export.precision.trials import Limits
    from dyce_export.sources import load_source
    from dyce_export.staging import check_destination

    destination = output or Path(f"{_stem(model, factory)}.dyce")
    overrides = _overrides(input_size, mean, std, interpolation, crop_pct)
    types = TYPES if heads == "all" else tuple(word.strip() for word in heads.split(","))
    options = Options(
        force=force,
        classes_file=classes,
        types=types,
        max_exits=max_exits,
        seed=seed,
        precisions=tuple(precision.split(",")) if precision else (),
        limits=Limits(min_agreement, max_precision_loss),
        **_given(epochs, tolerance),
    )
    with drawn_progress(quiet=quiet or not is_main()) as progress:
        if not list_exits:
            check_destination(destination, force=force)
        with progress.stage("load"):
            source = load_source(model, arch=arch, factory=factory, trust_pickle=trust_pickle, overrides=overrides)
        captured = capture_source(source, progress)
        if exits is not None:
            prepared = prepare(captured, exits.split(","), data=data, val=val, options=options)
            result = None if dry_run else write_bundle(prepared, destination, options=options, progress=progress)
    if not is_main():
        return
    if exits is None:
        _show_exit_points(source, captured.points, json)
    elif result is None:
        _show_dry_run(destination, json)
    else:
        _show_export(result, json)


def require_extra() -> None:
    """Raise ModelError unless what writes pieces is installed."""
    missing = [
        name
        for name in ("torch", "timm", "onnx", "onnxscript", "onnxruntime")
        if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise ModelError(
            f"exporting needs {', '.join(missing)}, which are not installed here",
            hint="pip install 'dyce-export[export]'. Running bundles needs none of them.",
        )


def _stem(model: str | None, factory: str | None) -> str:
    if model is None:
        return str(factory).split(":")[0].split(".")[-1]
    return model.removeprefix("timm:") if model.startswith("timm:") else Path(model).stem


def _given(epochs: int | None, tolerance: float | None) -> dict[str, Any]:
    """The options whose defaults stand elsewhere."""
    from dyce_calibration.heads import Recipe

    given: dict[str, Any] = {} if epochs is None else {"recipe": Recipe(epochs=epochs)}
    return given if tolerance is None else {**given, "tolerance": tolerance}


def _overrides(
    input_size: str | None, mean: str | None, std: str | None, interpolation: str | None, crop_pct: float | None
) -> InputOverrides:
    from dyce_export.inputs import InputOverrides

    def numbers(text: str | None, kind: type, option: str) -> Any:
        try:
            return None if text is None else tuple(kind(word) for word in text.split(","))
        except ValueError:
            raise UsageError(f"{option} is {text!r}; expected numbers with commas between") from None

    size = numbers(input_size, int, "--input-size")
    return InputOverrides(size, numbers(mean, float, "--mean"), numbers(std, float, "--std"), interpolation, crop_pct)


def _show_exit_points(source: Source, points: ExitPoints, json: bool) -> None:
    if json:
        document = [
            {
                "number": p.number,
                "module": p.module,
                "macs": p.macs,
                "share": p.share,
                "tensors": [{"name": n, "shape": list(s)} for n, s in zip(p.nodes, p.shapes, strict=True)],
            }
            for p in points.points
        ]
        print_json("export", {"model": source.name, "macs": points.total_macs, "exit_points": document})
        return
    rows = [
        (
            p.number,
            p.module,
            " + ".join("x".join(map(str, s)) for s in p.shapes),
            f"{p.macs / 1e6:,.1f}",
            f"{p.share:.1%}",
        )
        for p in points.points
    ]
    title = f"{source.name}: {len(rows)} exit points, {points.total_macs / 1e6:,.1f} MMACs in all"
    print_table(title, ("exit", "module", "shape", "MMACs to here", "share"), rows)


def _show_dry_run(destination: Path, json: bool) -> None:
    if json:
        print_json("export", {"bundle": str(destination), "dry_run": True})
    else:
        out.print(
            f"{destination} could be written: model, exits and data are in order. Nothing was written.", highlight=False
        )


def _show_export(result: Export, json: bool) -> None:
    manifest = result.manifest
    if json:
        import msgspec

        verification = manifest.verification
        assert verification is not None
        verify = {
            "verdict": verification.verdict,
            "max_relative_error": verification.max_relative_error,
            "exit_agreement": verification.exit_agreement,
            "exempt": verification.exempt,
            "samples": verification.samples,
        }
        print_json(
            "export",
            {
                "bundle": str(result.path),
                "exits": [exit.id for exit in manifest.exits],
                "heads": manifest.heads,
                "weights": manifest.model.weights,
                "verify": verify,
                "seconds": result.seconds,
                "configurations": msgspec.to_builtins(result.configurations.named),
            },
        )
        return
    out.print(
        f"[bold]{result.path}[/] written, verification {verification_line(manifest.verification)}", highlight=False
    )
    show_configurations(result.configurations, [exit.id for exit in manifest.exits])
    if manifest.heads == "untrained":
        out.print(
            "The heads are untrained: this bundle shows structure and speed. Train them with --data.", highlight=False
        )
