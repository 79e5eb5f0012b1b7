"""``dyce bench``: measure configurations and the uncut model in one run, on the same images."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dyce_export.cli.bounds import LARGEST_BATCH
from dyce_export.cli.console import Json, Quiet, Threads, Verbose, out, print_json, print_table, progress_bar, set_up
from dyce_runtime.errors import SuspiciousDataError, UsageError

if TYPE_CHECKING:
    from dyce_calibration.search.costs import CostTable
    from dyce_runtime.bundle.configuration import Configuration
    from dyce_runtime.execution.session import Session
    from dyce_runtime.inputs.datasets import Dataset

log = logging.getLogger("dyce_export")

# Most digits of a batch size; without a limit, int() would accept thousands.
_DIGITS = 10
HELP = "Measure every configuration next to the uncut model, on real pictures."


def command(
    bundle: Annotated[Path, typer.Argument(help="The bundle.", show_default=False)],
    data: Annotated[
        str, typer.Option(help="Pictures: a folder, .npz, MNIST-style folder or `digits`.", show_default=False)
    ],
    config: Annotated[
        list[str] | None,
        typer.Option(
            help="A configuration to measure, or `all`: every named one and the whole front. Default: every named one.",
            show_default=False,
        ),
    ] = None,
    baseline: Annotated[bool, typer.Option("--baseline", help="Measure the uncut model alone.")] = False,
    batch: Annotated[str, typer.Option(help="Pictures per call; several sizes with commas: 1,8,32.")] = "1",
    limit: Annotated[
        int,
        typer.Option(
            min=1, help="Use at most this many pictures, spread over the data; at most 1,000 of them are timed."
        ),
    ] = 10_000,
    save: Annotated[
        bool,
        typer.Option("--save", help="Keep the figures on this machine; `dyce inspect` and the report show them."),
    ] = False,
    write_cost_table: Annotated[
        Path | None,
        typer.Option(
            help="Measure every piece on its own instead, and write a cost table for `dyce search --costs`.",
            show_default=False,
        ),
    ] = None,
    unit: Annotated[
        str, typer.Option(help="Unit of the cost table: ms, or joules where the machine has a readable energy meter.")
    ] = "ms",
    classes: Annotated[Path | None, typer.Option(help="File that maps class folders to the model's classes.")] = None,
    target: Annotated[str | None, typer.Option(help="Engine. Default: the fastest on this machine.")] = None,
    threads: Threads = None,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Measure configurations and print the results."""
    set_up(verbose=verbose, quiet=quiet)
    sizes = _batch_sizes(batch)
    _check_options(unit, write_cost_table, config, sizes, save=save, baseline=baseline)
    from msgspec import to_builtins

    import dyce_runtime
    from dyce_runtime.measure import bench

    own = dyce_runtime.open_bundle(bundle, check_hashes=False).manifest.precision
    with dyce_runtime.load(
        bundle, target, precision=own, threads=threads, pool="global", allow_untrained=True
    ) as session:
        wanted = [] if baseline else bench.choose(session.bundle, config or list(session.bundle.configurations.named))
        dataset = _open(session, data, classes)
        if write_cost_table is not None:
            _write_cost_table(session, dataset, write_cost_table, unit, batch=sizes[0], limit=limit, json=json)
            return
        document = _measure(session, dataset, wanted, sizes, limit, save=save, baseline=baseline, quiet=quiet)
        document["lowering"] = to_builtins(session.manifest.lowering)
    if json:
        print_json("bench", {"bundle": str(bundle), "data": dataset.source, **document})
    else:
        _show(bundle, dataset.source, document)


def _open(session: Session, place: str, classes: Path | None) -> Dataset:
    """Open the images, labelled in the classes of the bundle; log warnings for implausible labels.

    Raises:
        DataError: the data cannot be opened, or the classes seem to be in another order than those of the model.
    """
    from dyce_runtime.inputs.labelled import ModelFacts, answer_of, open_labelled

    model = session.manifest.model
    facts = ModelFacts(model.num_classes, session.manifest.preprocessing, model.class_names, classes)
    (dataset,), doubts = open_labelled([place], facts, answer_of(session))
    assert dataset is not None
    if model.weights == "random":  # its answers mean nothing anyway
        return dataset
    for doubt in doubts:
        if doubt.order and not session.manifest.suspicious:
            raise SuspiciousDataError(doubt.message, hint=doubt.hint)
        log.warning("%s. %s", doubt.message, doubt.hint)
    return dataset


def _batch_sizes(words: str) -> list[int]:
    """Parse batch sizes such as ``1,8,32``."""
    parts = [word.strip() for word in words.split(",")]
    sizes = [int(part) for part in parts if part.isascii() and part.isdecimal() and len(part) < _DIGITS]
    if len(sizes) < len(parts) or min(sizes) < 1 or len(set(sizes)) < len(sizes):
        raise UsageError(
            f"--batch is {words!r}; expected a number of pictures, or several different ones with commas: 1,8,32"
        )
    if max(sizes) > LARGEST_BATCH:
        raise UsageError(
            f"--batch is {words!r}; expected at most {LARGEST_BATCH:,} pictures per call",
            hint="A batch is in memory at once, with all that is computed from it.",
        )
    return sizes


def _check_options(
    unit: str, table: Path | None, config: list[str] | None, sizes: list[int], *, save: bool, baseline: bool
) -> None:
    if unit not in ("ms", "joules"):
        raise UsageError(f"--unit is {unit!r}; expected ms or joules")
    if unit == "joules" and table is None:
        raise UsageError("--unit goes with --write-cost-table", hint="Name the file that gets the cost table.")
    if table is not None and len(sizes) > 1:
        raise UsageError("--write-cost-table goes with one --batch: a cost table holds for one batch size")
    for option, given in (("--save", save), ("--baseline", baseline)):
        if given and table is not None:
            raise UsageError(f"{option} and --write-cost-table do not go together", hint="Run the command twice.")
    for option, given in (("--config", bool(config)), ("--save", save)):
        if given and baseline:
            raise UsageError(
                f"--baseline and {option} do not go together: --baseline measures no configuration",
                hint="Without --baseline the uncut model is measured beside the configurations.",
            )


def _measure(
    session: Session,
    dataset: Dataset,
    configurations: list[Configuration],
    sizes: list[int],
    limit: int,
    *,
    save: bool,
    baseline: bool,
    quiet: bool,
) -> dict[str, Any]:
    """Run the benchmark and store the results if ``save`` is set."""
    from dyce_runtime.bundle.measured import write_benched
    from dyce_runtime.measure import bench, energy

    if save:  # fail before measuring if the results cannot be written
        write_benched(session.bundle, ())
    with progress_bar(quiet=quiet) as track:
        document = bench.benchmark(
            session,
            dataset,
            configurations,
            batch=sizes,
            limit=limit,
            chain=not baseline,
            find_meter=energy.find_meter,
            progress=lambda calls: track(calls, "measuring"),
        )
    if save:
        bench.save_figures(session.bundle, document)
        _renew_report(session.bundle.path)
    return document


def _renew_report(path: Path) -> None:
    """Update the figures in an existing report; its example images stay."""
    from dyce_calibration.report import renew_measured
    from dyce_runtime.bundle.measured import read_measured
    from dyce_runtime.bundle.reader import REPORT, open_bundle
    from dyce_runtime.errors import DestinationError

    # Read the bundle again: a search may have changed it during the benchmark.
    opened = open_bundle(path, check_hashes=False)
    try:
        renew_measured(opened.file(REPORT), opened.configurations, read_measured(opened))
    except DestinationError as error:
        log.warning("the report shows no new figures: %s", error.message)


def _write_cost_table(
    session: Session, dataset: Dataset, path: Path, unit: str, *, batch: int, limit: int, json: bool
) -> None:
    import msgspec

    from dyce_calibration.search.costs import write_costs

    costs = _measure_costs(session, dataset, unit, batch, limit)
    write_costs(costs, path)
    if json:
        print_json("bench", {"cost_table": str(path), **msgspec.to_builtins(costs)})
        return
    table = [
        (exit, f"{cost:.4g}", ", ".join(f"{type} {head:.4g}" for type, head in costs.heads.get(exit, {}).items()))
        for exit, cost in costs.backbone.items()
    ]
    columns = ("exit", f"backbone to here, {unit}", f"heads, {unit}")
    print_table(f"{path}: the uncut model takes {costs.full:.4g} {unit}", columns, table)


def _measure_costs(session: Session, dataset: Dataset, unit: str, batch: int, limit: int) -> CostTable:
    from dyce_calibration.search.costs import costs_of
    from dyce_runtime.bundle.measured import Tuning, write_tuning
    from dyce_runtime.inputs.images import all_of
    from dyce_runtime.measure.batching import measure_best_batch, measure_compaction
    from dyce_runtime.measure.bench import MOST_TIMED, check_batches, environment, spread_rows
    from dyce_runtime.measure.energy import find_meter
    from dyce_runtime.measure.piece_costs import measure_energies, measure_times

    rows = spread_rows(dataset, min(limit, MOST_TIMED))
    check_batches([batch], len(rows))
    batches = (
        all_of(session.preprocess(dataset.images(rows[start : start + batch])))
        for start in range(0, len(rows) - len(rows) % batch, batch)
    )
    measured = {**environment(session), "batch": str(batch)}
    if unit == "ms":
        times = measure_times(session, batches)
        if batch > 1:
            images = all_of(session.preprocess(dataset.images(rows[:batch])))
            tuning = Tuning(measure_best_batch(session, images), measure_compaction(session, images))
            write_tuning(session.bundle, session.target.name, session.spec.threads, tuning)
        return costs_of(times, "ms", session.bundle.fingerprint, measured)
    with find_meter() as meter:
        found = measure_energies(session, batches, meter)
    return costs_of(found, "joules", session.bundle.fingerprint, {**measured, "meter": meter.source})


def _show(bundle: Path, source: str, document: dict[str, Any]) -> None:
    environment = document["environment"]
    splits = ", ".join(f"{count} {name}" for name, count in document["splits"].items())
    for line in (
        f"{bundle.name} on {document['samples']} pictures of {source}, {document['timed_samples']} of them timed",
        f"{environment['cpu']}, {environment['cores']} cores, threads {environment['threads']}, "
        f"{environment['target']} {environment['engine']}, {environment['precision']}, {environment['date']}",
        f"CPU frequency governor {environment['cpu_governor']}, power mode {environment['power_mode']}",
        _memory_line(document["memory"]),
        f"These pictures by what they were used for when the bundle was made: {splits}.",
        *_lowering_lines(environment["precision"], document["lowering"]),
    ):
        out.print(line)
    for part in document["batches"]:
        _show_table(part, with_energy=document["meter"] is not None)
    _show_losses(document)
    if document["meter"] is not None:
        out.print(f"mJ: energy per picture above the idle machine ({document['meter']}).")
    for part in document["batches"]:
        out.print(part["verdict"])


def _lowering_lines(precision: str, lowering: dict[str, Any] | None) -> list[str]:
    """Describe how the precision differs from float32, as measured when the bundle was made."""
    if lowering is None:
        return []
    return [
        f"{precision} against float32: {lowering['exit_agreement']:.1%} of {lowering['samples']} unseen samples leave "
        f"at the same exit, the full model is right on {lowering['accuracy']:.1%} instead of "
        f"{lowering['accuracy_float32']:.1%}, logits are {lowering['logits_error']:.1e} apart."
    ]


def _memory_line(memory: dict[str, Any]) -> str:
    model, process = memory["model_bytes"], memory["process_bytes"]
    held = (
        "memory in use unknown"
        if model is None
        else f"{model / 1e6:.1f} MB of memory in use by the bundle, {process / 1e6:.1f} MB with Python and the engine"
    )
    return f"{held}; on disk " + ", ".join(
        f"{kind} {memory[f'{kind}_bytes'] / 1e6:.1f} MB" for kind in ("segments", "heads", "spans")
    )


def _show_table(part: dict[str, Any], *, with_energy: bool) -> None:
    """Print one batch size: figures, savings against the uncut model, and the share of images per exit."""
    entries = part["configurations"]
    exits = list(entries[0]["share_per_exit"]) if entries else []
    energy = ("mJ",) if with_energy else ()
    rows = []
    for entry in (part["uncut"], *entries):
        shares = [f"{share:.0%}" for share in entry.get("share_per_exit", {}).values()] or [""] * len(exits)
        saved = [f"{entry[key]:.0%}" if key in entry else "" for key in ("time_saved", "macs_saved")]
        saved.insert(1, _loss(entry))
        joules = [f"{entry['joules_per_sample'] * 1e3:.4g}"] if with_energy else []
        figures = (*_times(entry), f"{entry['throughput']:.1f}", *saved, _percent(entry["accuracy"]), *joules)
        rows.append((entry.get("name", "uncut model"), *figures, *shares))
    columns = (
        "mean ms",
        "p50",
        "p90",
        "p99",
        "pictures/s",
        "time saved",
        "loses",
        "MACs saved",
        "accuracy",
        *energy,
        *exits,
    )
    print_table(
        f"{part['batch']} per call; saved and lost against the uncut model, losses in points ± standard error\n"
        "(below 0: gained; p50, p90, p99: ms that so many % of the calls stay within"
        f"{'; last columns: share of pictures per exit' if exits else ''})",
        ("configuration", *(f" {column}" for column in columns)),
        rows,
    )
    if part["chain"] is not None:
        out.print(_chain_line(part["chain"]))


_VERDICTS = {
    "kept": "within what it may",
    "exceeded": "MORE THAN IT MAY",
    "none": "nothing",
    "loses": "loses",
    "undecided": "undecided",
}


def _show_losses(document: dict[str, Any]) -> None:
    """Print for every configuration its allowed and measured loss, and the class that loses most answers."""
    from dyce_runtime.measure.bench_verdict import points

    rows = []
    for entry in document["configurations"]:
        if entry["loss"] is None or not entry["exits"]:
            continue
        worst, allowed = entry["worst_class"], entry["allowed_loss"]
        most = "none" if worst is None else f"{worst['name']}: {worst['lost']} of {worst['samples']} pictures"
        rows.append(
            (
                entry["name"],
                _loss(entry),
                "" if allowed is None else points(allowed),
                _VERDICTS[entry["loss_verdict"]],
                most,
            )
        )
    if rows:
        columns = ("configuration", "loses", "may lose", "found", "class that loses most right answers")
        print_table(f"points of accuracy lost on {document['samples']} pictures", columns, rows)


def _loss(entry: dict[str, Any]) -> str:
    """Format the points lost with their standard error; empty for the uncut model and without labels."""
    from dyce_runtime.measure.bench_verdict import loss_text

    if entry.get("loss") is None or not entry["exits"]:
        return ""
    return loss_text(entry)


def _chain_line(chain: dict[str, Any]) -> str:
    ratio = chain["time_ratio_to_uncut"]
    return (
        f"Cut at every exit and run to the end without any head the model takes {chain['mean_ms']:.2f} ms, "
        f"{ratio:.2f} times the uncut model's time: that is what cutting costs when every seam is paid."
    )


def _times(entry: dict[str, Any]) -> list[str]:
    return [f"{entry[key]:.2f}" for key in ("mean_ms", "p50_ms", "p90_ms", "p99_ms")]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"
