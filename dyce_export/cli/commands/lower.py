"""``dyce lower``: add the network of a bundle in further precisions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dyce_export.cli.commands.inspect import show_configurations, show_precisions
from dyce_export.cli.console import (
    Json,
    MaxPrecisionLoss,
    MinAgreement,
    Quiet,
    Verbose,
    drawn_progress,
    out,
    print_json,
    set_up,
)
from dyce_export.cli.terminal import bold

if TYPE_CHECKING:
    from dyce_runtime.bundle.reader import Bundle

HELP = "Add lower precisions to a bundle, with thresholds and certificates of their own; nothing is trained."


def command(
    bundle: Annotated[Path, typer.Argument(help="The bundle.", show_default=False)],
    precision: Annotated[
        str, typer.Option(help="bfloat16, float16, int8, uint8; several with commas.", show_default=False)
    ],
    data: Annotated[
        str, typer.Option(help="Pictures from which the ranges of 8-bit integers are measured.", show_default=False)
    ],
    val: Annotated[
        str | None,
        typer.Option(help="The --val of the export; not needed if the export had none.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="A new bundle. Default: this one is changed.", show_default=False),
    ] = None,
    target: Annotated[
        str, typer.Option(help="Engine in which thresholds are chosen; engines round 8-bit integers differently.")
    ] = "onnxruntime",
    min_agreement: MinAgreement = 0.99,
    max_precision_loss: MaxPrecisionLoss = 0.01,
    force: Annotated[bool, typer.Option("--force", help="Replace the bundle at --output.")] = False,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Lower the bundle and print the result."""
    set_up(verbose=verbose, quiet=quiet)
    from dyce_export.cli.commands.export import require_extra

    require_extra()
    from dyce_export.precision.lower import check_precisions
    from dyce_export.precision.trials import Limits
    from dyce_export.writing.rewrite import with_precisions
    from dyce_runtime.bundle.reader import open_bundle
    from dyce_runtime.errors import UsageError
    from dyce_runtime.inputs.datasets import open_dataset
    from dyce_runtime.targets import registry

    names = tuple(precision.split(","))
    check_precisions(names)
    if registry.find(target).engines:
        raise UsageError(
            f"--target {target} runs engines that are built from a finished bundle; expected one that reads ONNX",
            hint="onnxruntime, or openvino.",
        )
    opened = open_bundle(bundle)
    _check(opened)
    way = opened.manifest.preprocessing
    pictures = [open_dataset(place).check(way) for place in (data, *([val] if val else []))]
    with drawn_progress(quiet=quiet) as progress:
        limits = Limits(min_agreement, max_precision_loss)
        made = with_precisions(
            opened, names, pictures[0], pictures[-1], output or bundle, limits, progress, target, force=force
        )
    if json:
        import msgspec

        found = {name: msgspec.to_builtins(made.precision(name).manifest.lowering) for name in made.manifest.precisions}
        print_json("lower", {"bundle": str(made.path), "precisions": found})
        return
    show_precisions(made)
    for name in names:
        out.print(bold(name))
        lowered = made.precision(name)
        show_configurations(lowered.configurations, lowered.manifest)


def _check(bundle: Bundle) -> None:
    from dyce_runtime.bundle.reader import RECORDS
    from dyce_runtime.errors import BundleError

    if bundle.manifest.precision != "float32":
        raise BundleError(
            f"{bundle.path} is in {bundle.manifest.precision}; expected a bundle in float32",
            hint="Name the bundle that contains it.",
        )
    if not bundle.file(RECORDS).is_file():
        raise BundleError(
            f"{bundle.path} has no records, so changes of the samples' exits could not be measured",
            hint="Export with --data; heads are then trained.",
        )
