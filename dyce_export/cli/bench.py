"""``dyce bench``: configurations next to the uncut model, on the same pictures in one run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dyce_export.cli.console import Json, Quiet, Threads, Verbose, out, print_json, print_table, progress_bar, set_up
from dyce_runtime.errors import DataError, UsageError

if TYPE_CHECKING:
    from dyce_calibration.costs import CostTable
    from dyce_runtime.datasets import Dataset
    from dyce_runtime.session import Session

HELP = "Measure every configuration next to the uncut model, on real pictures."


def command(
    bundle: Annotated[Path, typer.Argument(help="The bundle.", show_default=False)],
    data: Annotated[
        str, typer.Option(help="Pictures: a folder, .npz, MNIST-style folder or `digits`.", show_default=False)
    ],
    config: Annotated[
        list[str] | None, typer.Option(help="Configuration (repeatable); all of them without it.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Pictures per call.")] = 1,
    limit: Annotated[int, typer.Option(min=1, help="At most that many pictures, spread over the data.")] = 1000,
    save: Annotated[
        bool, typer.Option("--save", help="Store the figures in the bundle; `dyce inspect` shows them.")
    ] = False,
    write_cost_table: Annotated[
        Path | None,
        typer.Option(help="Measure every piece instead and write what `dyce search` reads.", show_default=False),
    ] = None,
    unit: Annotated[
        str, typer.Option(help="Of the cost table: ms, or joules where the machine has a meter that may be read.")
    ] = "ms",
    classes: Annotated[Path | None, typer.Option(help="File that maps class folders to the model's classes.")] = None,
    target: Annotated[str | None, typer.Option(help="Target; the first available one without it.")] = None,
    threads: Threads = None,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Measure and print."""
    set_up(verbose=verbose, quiet=quiet)
    _check_options(unit, write_cost_table, save=save)
    import dyce_runtime
    from dyce_runtime.bench import benchmark, save_figures
    from dyce_runtime.bundle import write_configurations
    from dyce_runtime.datasets import open_dataset

    with dyce_runtime.load(bundle, target, threads=threads, pool="global", allow_untrained=True) as session:
        model = session.manifest.model
        dataset = open_dataset(
            data, class_names=model.class_names, num_classes=model.num_classes, classes_file=classes
        ).check()
        if write_cost_table is not None:
            _write_cost_table(session, dataset, write_cost_table, unit, batch=batch, limit=limit, json=json)
            return
        if save:  # what cannot be written shows before anything is measured
            write_configurations(session.bundle.configurations, bundle)
        names = config or list(session.bundle.configurations.named)
        with progress_bar(quiet=quiet) as track:
            document = benchmark(
                session, dataset, names, batch=batch, limit=limit, progress=lambda calls: track(calls, "measuring")
            )
        if save:
            save_figures(session.bundle, document)
    if json:
        print_json("bench", {"bundle": str(bundle), "data": dataset.source, **document})
    else:
        _show(bundle, dataset.source, document)


def _check_options(unit: str, table: Path | None, *, save: bool) -> None:
    if unit not in ("ms", "joules"):
        raise UsageError(f"--unit is {unit!r}; expected ms or joules")
    if unit == "joules" and table is None:
        raise UsageError("--unit goes with --write-cost-table", hint="Name the file that gets the cost table.")
    if save and table is not None:
        raise UsageError("--save and --write-cost-table do not go together", hint="Run the command twice.")


def _write_cost_table(
    session: Session, dataset: Dataset, path: Path, unit: str, *, batch: int, limit: int, json: bool
) -> None:
    import msgspec

    from dyce_calibration.costs import write_costs

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
    import numpy as np

    from dyce_calibration.costs import costs_of
    from dyce_runtime.bench import environment
    from dyce_runtime.energy import find_meter
    from dyce_runtime.piece_costs import measure_energies, measure_times

    rows = np.unique(np.linspace(0, len(dataset) - 1, min(limit, len(dataset))).astype(int))
    if len(rows) < batch:
        raise DataError(f"there are {len(rows)} pictures for --batch {batch}; expected one batch at the least")
    batches = (
        session.preprocess(dataset.images(rows[start : start + batch]))
        for start in range(0, len(rows) - len(rows) % batch, batch)
    )
    measured = {**environment(session), "batch": str(batch)}
    if unit == "ms":
        return costs_of(measure_times(session, batches), "ms", session.bundle.fingerprint, measured)
    with find_meter() as meter:
        found = measure_energies(session, batches, meter)
    return costs_of(found, "joules", session.bundle.fingerprint, {**measured, "meter": meter.source})


def _show(bundle: Path, source: str, document: dict[str, Any]) -> None:
    environment, uncut = document["environment"], document["uncut"]
    splits = ", ".join(f"{count} {name}" for name, count in document["splits"].items())
    out.print(
        f"{bundle.name} on {document['samples']} pictures of {source}, {document['batch']} per call", highlight=False
    )
    out.print(
        f"{environment['cpu']}, {environment['cores']} cores, threads {environment['threads']}, "
        f"{environment['target']} {environment['engine']}, {environment['date']}",
        highlight=False,
    )
    out.print(f"These pictures by what they were used for when the bundle was made: {splits}.", highlight=False)
    exits = list(document["configurations"][0]["share_per_exit"]) if document["configurations"] else []
    rows = [("uncut model", *_times(uncut), "1.00", "100%", _percent(uncut["accuracy"]), *("" for _ in exits))]
    for entry in document["configurations"]:
        shares = [f"{share:.0%}" for share in entry["share_per_exit"].values()]
        ratios = [f"{entry['time_ratio_to_uncut']:.2f}", f"{entry['macs_share']:.0%}"]
        rows.append((entry["name"], *_times(entry), *ratios, _percent(entry["accuracy"]), *shares))
    columns = ("configuration", "mean ms", "p50", "p90", "p99", "time", "MACs", "accuracy", *exits)
    print_table("time and MACs relative to the uncut model; last columns: share of samples per exit", columns, rows)
    out.print(document["verdict"], highlight=False)


def _times(entry: dict[str, Any]) -> list[str]:
    return [f"{entry[key]:.2f}" for key in ("mean_ms", "p50_ms", "p90_ms", "p99_ms")]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"
