"""``dyce export`` and ``dyce-export``: turn a model into a verified bundle."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dyce_calibration.launcher import is_main
from dyce_export.cli import bounds
from dyce_export.cli.commands.inspect import show_configurations, verification_line
from dyce_export.cli.console import (
    Json,
    MaxPrecisionLoss,
    MinAgreement,
    Quiet,
    Verbose,
    Version,
    drawn_progress,
    out,
    print_json,
    print_table,
    set_up,
)
from dyce_export.cli.options import (
    AllowSuspicious,
    Arch,
    Classes,
    ClassNames,
    CropMode,
    CropPct,
    Factory,
    InputSize,
    Interpolation,
    Mean,
    SaverClasses,
    Std,
    Task,
    TrustPickle,
    open_model,
    overrides_of,
)
from dyce_export.cli.terminal import bold
from dyce_runtime.bundle.reader import REPORT
from dyce_runtime.errors import ModelError, UsageError

if TYPE_CHECKING:
    from dyce_export.pipeline import Export
    from dyce_export.prepare import Captured

HELP = (
    "Make a model early-exit: split it at the exit points, train heads, choose configurations, verify, write a bundle."
)


def command(
    model: Annotated[
        str | None,
        typer.Argument(
            help="Checkpoint (.pt, .pth, .safetensors), .pt2 or timm:NAME; with --saver also a bundle.",
            show_default=False,
        ),
    ] = None,
    exits: Annotated[
        str | None,
        typer.Option(help="Exit points: numbers or module names, such as 3,7,12; or auto.", show_default=False),
    ] = None,
    max_exits: Annotated[int, typer.Option(min=1, help="How many exits auto chooses at most.")] = 4,
    saver: Annotated[
        list[str] | None,
        typer.Option(
            help="Small independent model that runs first: a bundle, a checkpoint, ARCH=CHECKPOINT or timm:NAME. "
            "May be given several times.",
            show_default=False,
        ),
    ] = None,
    saver_classes: SaverClasses = None,
    esn: Annotated[
        bool,
        typer.Option(
            "--esn",
            help="Add heads that also see the features of the saver and of earlier exits (exit sequence network).",
        ),
    ] = False,
    heads: Annotated[
        str,
        typer.Option(
            help="Types of heads to train at every exit, with commas, or all. mlp1x1000 is one linear layer; "
            "mlp3x500 has two hidden layers of 500 units before it."
        ),
    ] = "mlp1x1000",
    list_exits: Annotated[
        bool, typer.Option("--list-exits", help="Print the exit points of the model and stop.")
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(
            help="Pictures to train the exit heads with: a folder with a folder per class, .npz, an MNIST-style "
            "folder or `digits`.",
            show_default=False,
        ),
    ] = None,
    val: Annotated[
        str | None,
        typer.Option(
            help="Pictures that the model was not trained on: thresholds are chosen and certified with them.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="The bundle. Default: MODEL.dyce in the current folder.", show_default=False
        ),
    ] = None,
    arch: Arch = None,
    factory: Factory = None,
    task: Task = "single-label",
    class_names: ClassNames = None,
    classes: Classes = None,
    input_size: InputSize = None,
    mean: Mean = None,
    std: Std = None,
    interpolation: Interpolation = None,
    crop_pct: CropPct = None,
    crop_mode: CropMode = None,
    epochs: Annotated[
        int | None,
        typer.Option(callback=bounds.epochs, help="Epochs for which the heads are trained.", show_default=False),
    ] = None,
    seed: Annotated[
        int, typer.Option(callback=bounds.seed, help="Seed for dividing the pictures and for training the heads.")
    ] = 0,
    tolerance: Annotated[
        float | None,
        typer.Option(
            callback=bounds.tolerance, help="Largest relative error against torch. Default: 1e-4.", show_default=False
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="Lower precisions to add to the bundle: bfloat16, float16, int8, uint8; several with commas.",
            show_default=False,
        ),
    ] = None,
    min_agreement: MinAgreement = 0.99,
    max_precision_loss: MaxPrecisionLoss = 0.01,
    trust_pickle: TrustPickle = False,
    allow_suspicious: AllowSuspicious = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the bundle if it exists.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the model, the options and the pictures, write nothing, and stop.")
    ] = False,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
    version: Version = False,
) -> None:
    """Export and print the result."""
    set_up(verbose=verbose, quiet=quiet)
    if model is None and factory is None:
        raise UsageError("no model was given; expected a checkpoint, timm:NAME or --model", hint="`dyce export --help`")
    _check_exits(model, exits, saver, list_exits=list_exits)
    if saver_classes is not None and not saver:
        raise UsageError("--saver-classes was given without --saver")
    if val is not None and data is None:
        raise UsageError(
            "--val was given without --data", hint="--data fits the heads; --val then chooses configurations."
        )
    require_extra()
    from dyce_calibration.heads.training import TYPES
    from dyce_export.cascade import export_cascade, prepare_cascade
    from dyce_export.options import Options
    from dyce_export.precision.trials import Limits
    from dyce_export.savers.resolve_saver import Savers
    from dyce_export.savers.sequence import DEFAULT_TYPE, check_sequence
    from dyce_export.writing.staging import check_destination
    from dyce_runtime.bundle.reader import Bundle, is_bundle

    if esn:
        chosen = exits is not None or (model is not None and is_bundle(model))
        check_sequence(savers=bool(saver), exits=chosen, data=data is not None)
    destination = output or Path(f"{_stem(model, factory)}.dyce")
    overrides = overrides_of(input_size, mean, std, interpolation, crop_pct, crop_mode)
    types = TYPES if heads == "all" else tuple(word.strip() for word in heads.split(","))
    options = Options(
        force=force,
        classes_file=classes,
        types=types,
        max_exits=max_exits,
        seed=seed,
        sequence=DEFAULT_TYPE if esn else None,
        precisions=tuple(precision.split(",")) if precision else (),
        limits=Limits(min_agreement, max_precision_loss),
        task=task,
        allow_suspicious=allow_suspicious,
        **_given(epochs, tolerance),
    )
    with drawn_progress(quiet=quiet or not is_main()) as progress:
        if not list_exits:
            check_destination(destination, force=force or dry_run)
        base = open_model(
            model,
            arch,
            factory,
            overrides,
            progress,
            bundle=bool(saver),
            class_names=class_names,
            trust_pickle=trust_pickle,
        )
        if not list_exits:
            savers = Savers.load(saver or [], saver_classes, base, trust_pickle=trust_pickle)
            cascade = prepare_cascade(base, exits.split(",") if exits else [], savers, data, val, options, progress)
            result = None if dry_run else export_cascade(cascade, destination, options=options, progress=progress)
    if not is_main():
        return
    if list_exits:
        assert not isinstance(base, Bundle)
        _show_exit_points(base, json)
    elif result is None:
        _show_dry_run(destination, json)
    else:
        _show_export(result, json, val or data)


def _check_exits(model: str | None, exits: str | None, savers: list[str] | None, *, list_exits: bool) -> None:
    """Raise UsageError if the options that determine the exits contradict each other."""
    from dyce_runtime.bundle.reader import is_bundle

    if not list_exits and exits is None and not savers:
        raise UsageError(
            "no exits were given",
            hint="--exits auto lets --data choose; --list-exits prints the possible ones, --exits 3,7,12 takes these.",
        )
    if list_exits and (exits is not None or savers):
        other = "--exits" if exits is not None else "--saver"
        raise UsageError(f"--list-exits and {other} do not go together", hint="--list-exits only prints.")
    if model is not None and is_bundle(model) and (exits is not None or not savers):
        raise UsageError(
            f"{model} is a bundle, whose exits are chosen already; expected a model",
            hint="A bundle can be given savers: --saver, without --exits.",
        )


def require_extra() -> None:
    """Raise ModelError unless the packages that exporting needs are installed."""
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
    """Return the options that were given and whose defaults other modules define."""
    from dyce_calibration.heads.training import Recipe

    given: dict[str, Any] = {} if epochs is None else {"recipe": Recipe(epochs=epochs)}
    return given if tolerance is None else {**given, "tolerance": tolerance}


def _show_exit_points(captured: Captured, json: bool) -> None:
    source, points = captured.source, captured.points
    points.require()
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
        written = "exists, so it could be written with --force" if destination.exists() else "could be written"
        out.print(f"{destination} {written}: model, exits and data are in order. Nothing was written.")


def _show_export(result: Export, json: bool, data: str | None) -> None:
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
                "suspicious": list(manifest.suspicious),
                "verify": verify,
                "seconds": result.seconds,
                "configurations": msgspec.to_builtins(result.configurations.named),
            },
        )
        return
    out.print(bold(result.path), f"written, verification {verification_line(manifest.verification)}")
    show_configurations(result.configurations, manifest)
    if manifest.heads == "untrained":
        out.print("The heads are untrained: this bundle shows structure and speed. Train them with --data.")
    _show_next(result.path, trained=manifest.heads != "untrained", data=data)


def _show_next(path: Path, *, trained: bool, data: str | None) -> None:
    """Print the two commands that are most likely to be useful next."""
    bundle, pictures = quote(str(path)), quote(data) if data else "PICTURES"
    flag = "" if trained else " --allow-untrained"
    out.print("Next:")
    out.print(f"  dyce run {bundle} {pictures} --limit 10{flag}", soft_wrap=True)
    out.print(f"  dyce bench {bundle} --data {pictures if not trained else 'OTHER_PICTURES'}", soft_wrap=True)
    if (path / REPORT).is_file():
        out.print(f"{path / REPORT} shows what was chosen.")
