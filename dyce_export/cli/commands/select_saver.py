"""``dyce select-saver``: find which small model of a pool is worth running before a base model."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dyce_calibration.launcher import process_count
from dyce_export.cli import bounds
from dyce_export.cli.commands.inspect import show_configurations
from dyce_export.cli.console import Json, Quiet, Threads, Verbose, drawn_progress, out, print_json, print_table, set_up
from dyce_export.cli.options import (
    AllowSuspicious,
    Arch,
    Classes,
    CropMode,
    CropPct,
    Factory,
    InputSize,
    Interpolation,
    Mean,
    SaverClasses,
    Std,
    TrustPickle,
    open_model,
    overrides_of,
)
from dyce_export.cli.terminal import bold
from dyce_runtime.errors import UsageError

if TYPE_CHECKING:
    from dyce_export.savers.select import Judged, Judgement
    from dyce_runtime.bundle.reader import Bundle


class Unit(str, Enum):
    """What a candidate is ranked by."""

    ms = "ms"
    macs = "macs"


HELP = "Find the small model of a pool that is worth running before a model, and what it would save."


def command(
    model: Annotated[
        str | None, typer.Argument(help="Your model: a checkpoint, .pt2, timm:NAME or a bundle.", show_default=False)
    ] = None,
    pool: Annotated[
        str,
        typer.Option(
            help="Candidates, with commas: bundles, checkpoints, ARCH=CHECKPOINT or timm:NAME.", show_default=False
        ),
    ] = "",
    data: Annotated[
        str | None, typer.Option(help="Pictures that train the exit heads, as for an export.", show_default=False)
    ] = None,
    val: Annotated[
        str | None,
        typer.Option(
            help="Pictures that none of the models was trained on; the candidates are judged on a part of them.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Write a bundle in which the best candidate runs before your model.",
            show_default=False,
        ),
    ] = None,
    by: Annotated[Unit, typer.Option(help="The best candidate is the one that saves most of: ms or macs.")] = Unit.ms,
    max_loss: Annotated[
        float,
        typer.Option(
            callback=bounds.share,
            help="Loss of accuracy that the search next to each candidate may take, as a fraction.",
        ),
    ] = 0.005,
    arch: Arch = None,
    factory: Factory = None,
    classes: Classes = None,
    saver_classes: SaverClasses = None,
    input_size: InputSize = None,
    mean: Mean = None,
    std: Std = None,
    interpolation: Interpolation = None,
    crop_pct: CropPct = None,
    crop_mode: CropMode = None,
    target: Annotated[
        str | None,
        typer.Option(help="Engine in which the models are timed.", show_default=False),
    ] = None,
    threads: Threads = None,
    seed: Annotated[int, typer.Option(callback=bounds.seed, help="Seed for dividing the pictures.")] = 0,
    cache: Annotated[
        Path | None, typer.Option(help="Where recordings are kept. Default: the user's cache.", show_default=False)
    ] = None,
    trust_pickle: TrustPickle = False,
    allow_suspicious: AllowSuspicious = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the bundle at --output.")] = False,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Judge the candidates, print the result and write a bundle if an output was given."""
    set_up(verbose=verbose, quiet=quiet)
    names = [name.strip() for name in pool.split(",") if name.strip()]
    _check(model, factory, names, data)
    from dyce_export.cli.commands.export import require_extra

    require_extra()
    from dyce_export.options import Options
    from dyce_export.savers.compose import compose
    from dyce_export.savers.joint_verification import read_mapping
    from dyce_export.savers.pool import Pool
    from dyce_export.savers.select import Question, judge
    from dyce_export.writing.staging import check_destination
    from dyce_runtime.bundle.cache import user_cache

    overrides, mapping = (
        overrides_of(input_size, mean, std, interpolation, crop_pct, crop_mode),
        read_mapping(saver_classes),
    )
    if output is not None:
        check_destination(output, force=force)
    made = None
    with drawn_progress(quiet=quiet) as progress:
        found = open_model(model, arch, factory, overrides, progress, bundle=True, trust_pickle=trust_pickle)
        options = Options(classes_file=classes, seed=seed, allow_suspicious=allow_suspicious)
        kept = Pool(cache or user_cache() / "pool", str(data), val, options, progress)
        base = kept.base(found)
        how = Question(mapping, max_loss, by, target, threads, trust_pickle=trust_pickle)
        judgement = judge(base, names, kept, how)
        if output is not None:
            winner = judgement.candidates[0].bundle
            made = compose(base, [winner], output, val=kept.pictures, mapping=mapping, progress=progress, force=force)
    if json:
        print_json("select-saver", _document(base, judgement, max_loss, made))
        return
    _show(base, judgement, max_loss)
    if made is not None:
        out.print(bold(made.path), f"written, with {judgement.candidates[0].name} first")
        show_configurations(made.configurations, made.manifest)


def _check(model: str | None, factory: str | None, names: list[str], data: str | None) -> None:
    if process_count() > 1:
        raise UsageError(
            "several processes were started; select-saver runs in one", hint="Start it without a launcher."
        )
    if model is None and factory is None:
        raise UsageError("no base was given; expected a checkpoint, timm:NAME, a bundle or --model")
    if not names:
        raise UsageError("no candidates were given", hint="Name them with --pool tiny.pt,timm:NAME,small.dyce.")
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"{repeated} appears twice in --pool; expected each candidate once")
    if data is None:
        raise UsageError("no pictures were given", hint="Give --data, and --val with pictures that no model has seen.")


def _document(base: Bundle, judgement: Judgement, max_loss: float, made: Bundle | None) -> dict[str, Any]:
    import msgspec

    def entry(one: Judged) -> dict[str, Any]:
        return {
            "name": one.name,
            "model": one.bundle.manifest.model.name,
            "accuracy": one.accuracy,
            "threshold": one.takeover.threshold,
            "share": one.takeover.share,
            "macs": one.macs,
            "ms": one.ms,
            "delta_macs": one.delta_macs,
            "delta_ms": one.delta_ms,
            "search": msgspec.to_builtins(one.search),
            "test": msgspec.to_builtins(one.test),
        }

    return {
        "base": {
            "name": base.manifest.model.name,
            "macs": base.manifest.model.macs,
            "ms": judgement.base_ms,
            "accuracy": judgement.accuracy,
        },
        "max_loss": max_loss,
        "candidates": list(map(entry, judgement.candidates)),
        "skipped": [{"name": name, "reason": reason} for name, reason in judgement.skipped.items()],
        "bundle": None if made is None else str(made.path),
    }


def _show(base: Bundle, judgement: Judgement, max_loss: float) -> None:
    model = base.manifest.model

    def row(one: Judged) -> tuple[str, ...]:
        searched = ("", "", "")
        if one.search is not None and one.test is not None:
            searched = (f"{one.search.cost:.1%}", f"{one.test.cost:.1%}", f"{100 * one.test.loss:+.2f}")
        own = (f"{one.accuracy:.1%}", f"{one.macs / 1e6:.1f}", f"{one.ms:.3f}", f"{one.takeover.share:.1%}")
        return (one.bundle.manifest.model.name, *own, f"{one.delta_macs:+.3f}", f"{one.delta_ms:+.3f}", *searched)

    print_table(
        f"before {model.name}: {judgement.accuracy:.1%} right, {model.macs / 1e6:.1f} MMACs, "
        f"{judgement.base_ms:.3f} ms\n"
        "(takes: share of the samples on which the base is no better; change: cost relative to the base less that\n"
        f"share, below 0 it saves; last columns: MACs where at most {100 * max_loss:g} points are lost on the search\n"
        "split, and what that is and loses on the test split)",
        ("saver", "right", "MMACs", "ms", "takes", "change, MACs", "change, ms", "searched", "| test", "loss"),
        map(row, judgement.candidates),
    )
    for name, reason in judgement.skipped.items():
        out.print(f"skipped: {name}: {reason}")
