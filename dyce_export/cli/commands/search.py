"""``dyce search``: choose configurations from records and costs, on any machine, without data and torch."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dyce_export.cli import bounds
from dyce_export.cli.commands.inspect import UNITS, show_configurations
from dyce_export.cli.console import Json, Quiet, Verbose, out, print_json, print_table, set_up
from dyce_runtime.bundle.configuration import settings_of
from dyce_runtime.errors import BundleError, DataError, UsageError

if TYPE_CHECKING:
    from dyce_calibration.records import Records
    from dyce_calibration.search.costs import CostTable
    from dyce_calibration.search.problem import Problem
    from dyce_calibration.search.run import Outcome, Search
    from dyce_runtime.bundle.configuration import Configurations
    from dyce_runtime.bundle.reader import Bundle

_ROWS = 20
log = logging.getLogger("dyce_export")
HELP = "Choose configurations again from the records in a bundle, such as with costs measured on this machine."


def command(
    bundle: Annotated[
        Path | None, typer.Argument(help="The bundle. Its configurations are replaced.", show_default=False)
    ] = None,
    costs: Annotated[
        Path | None,
        typer.Option(
            help="Cost table from `dyce bench --write-cost-table`, or `macs` to count multiply-accumulates.",
            show_default=False,
        ),
    ] = None,
    records: Annotated[
        Path | None,
        typer.Option(help="Search in a file of records (.npz) instead of a bundle; needs --costs.", show_default=False),
    ] = None,
    test: Annotated[
        Path | None, typer.Option(help="Second file of records, on which the result is reported.", show_default=False)
    ] = None,
    method: Annotated[
        str, typer.Option(help="Search method: exact; or, for comparison, onepass, circular or samethres.")
    ] = "exact",
    points: Annotated[
        int, typer.Option(callback=bounds.points, help="Number of trade-offs between accuracy and cost to solve for.")
    ] = 500,
    epsilon: Annotated[
        float, typer.Option(help="Largest loss of accuracy that a certificate promises, as a fraction.")
    ] = 0.01,
    delta: Annotated[float, typer.Option(help="Probability with which the promise may fail.")] = 0.05,
    max_loss: Annotated[
        float | None,
        typer.Option(
            help="Add a configuration `chosen`: the cheapest that loses at most this, as a fraction.",
            show_default=False,
        ),
    ] = None,
    max_cost: Annotated[
        float | None,
        typer.Option(
            help="Add a configuration `chosen`: the most accurate that costs at most this share of the full model.",
            show_default=False,
        ),
    ] = None,
    conservative: Annotated[
        bool, typer.Option("--conservative", help="Choose with a safety margin, for few pictures.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="A new bundle, with the segments joined where a chosen configuration has no exit between them.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the bundle at --output.")] = False,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Search, store and print configurations."""
    set_up(verbose=verbose, quiet=quiet)
    from dyce_calibration.search.run import Search

    if (bundle is None) == (records is None):
        raise UsageError("expected a bundle or --records, one of them", hint="`dyce search --help`")
    if max_loss is not None and max_cost is not None:
        raise UsageError("--max-loss and --max-cost do not go together", hint="Give one of them.")
    how = Search(method, points, epsilon, delta, conservative=conservative, max_loss=max_loss, max_cost=max_cost)
    if bundle is not None:
        if test is not None:
            raise UsageError("--test goes with --records; a bundle has a test split of its own")
        _search_bundle(bundle, costs, how, output, force=force, json=json)
    elif output is not None:
        raise UsageError("--output goes with a bundle; --records has no pieces to write")
    else:
        assert records is not None
        if costs is None:
            raise UsageError("--records needs --costs, the cost of each head and each part of the backbone")
        _search_records(records, costs, test, how, json)


def _search_bundle(
    path: Path, costs_path: Path | None, how: Search, output: Path | None, *, force: bool, json: bool
) -> None:
    from dyce_calibration.promises.choose import choose
    from dyce_calibration.records import Records
    from dyce_export.reports import renew_report
    from dyce_runtime.bundle.reader import RECORDS, open_bundle

    opened = open_bundle(path, check_hashes=output is not None)
    if not opened.file(RECORDS).is_file():
        raise BundleError(f"{path} has no records to search in", hint="Export with --data; heads are then trained.")
    costs = _costs_of(opened, costs_path)
    if output is not None:
        costs = costs.with_all_spans()
        _check_output(output, force=force)
    start = time.perf_counter()
    records = Records.load(opened.file(RECORDS))
    configurations = choose(records, costs, how)
    seconds = time.perf_counter() - start
    before = opened.configurations
    opened = _store(opened, configurations, output, force=force)
    renew_report(opened, records, costs, opened.configurations)
    if output is not None and not json:
        out.print(f"{output} written; {path} is as it was.")
    if json:
        print_json("search", {"bundle": str(opened.path), **_document(how, seconds, opened.configurations)})
    else:
        show_configurations(opened.configurations, opened.manifest)
        _show_changes(before, opened.configurations)


def _show_changes(before: Configurations, after: Configurations) -> None:
    """Print which named configurations changed, and the units of the costs."""
    if before.unit == after.unit:
        out.print(f"Costs were weighed in {UNITS[after.unit]}, as before.")
    else:
        out.print(f"Costs were weighed in {UNITS[after.unit]}; before, in {UNITS[before.unit]}.")
    found: dict[str, list[str]] = {"new": [], "changed": [], "as before": [], "gone": []}
    for name in dict.fromkeys([*before.named, *after.named]):
        old, new = before.named.get(name), after.named.get(name)
        same = old is not None and new is not None and settings_of(old) == settings_of(new)
        found["new" if old is None else "gone" if new is None else "as before" if same else "changed"].append(name)
    out.print("; ".join(f"{what}: {', '.join(names)}" for what, names in found.items() if names) + ".")


def _check_output(output: Path, *, force: bool) -> None:
    """Check before the search what would otherwise fail after it."""
    from dyce_export.cli.commands.export import require_extra
    from dyce_export.writing.staging import check_destination

    require_extra()
    check_destination(output, force=force)


def _store(opened: Bundle, configurations: Configurations, output: Path | None, *, force: bool) -> Bundle:
    """Write the configurations to the bundle, or to a new one, which has no measurements of its pieces yet."""
    from dyce_runtime.bundle.reader import open_bundle, write_configurations

    if output is not None:
        from dyce_export.writing.rewrite import rewrite

        return rewrite(opened, configurations, output, force=force)
    write_configurations(configurations, opened.path)
    return open_bundle(opened.path, check_hashes=False)


def _costs_of(opened: Bundle, path: Path | None) -> CostTable:
    from dyce_calibration.search.costs import MACS, macs_of, read_costs

    unit = opened.configurations.unit
    if path is None and unit != MACS:
        raise UsageError(
            f"the configurations of {opened.path} were chosen by {unit}; without a cost table they would be chosen by "
            "multiply-accumulates",
            hint=f"--costs FILE, from `dyce bench --write-cost-table FILE`, or --costs {MACS} to go back to these.",
        )
    if path is None or str(path) == MACS:
        return macs_of(opened.manifest)
    costs = read_costs(path)
    if costs.model and costs.model != opened.fingerprint:
        raise DataError(
            f"{path} was measured on another bundle than {opened.path}",
            hint="`dyce bench BUNDLE --data PICTURES --write-cost-table FILE` measures this one.",
        )
    return costs


def _document(how: Search, seconds: float, configurations: Configurations) -> dict[str, Any]:
    import msgspec

    return {"method": how.method, "seconds": seconds, "configurations": msgspec.to_builtins(configurations)}


def _search_records(path: Path, costs_path: Path, test: Path | None, how: Search, json: bool) -> None:
    from dyce_calibration.search.problem import make_problem
    from dyce_calibration.search.run import run

    costs, found = _read(path, costs_path, "search")
    chosen_on = make_problem(found, costs)
    reported_on = None if test is None else make_problem(_read(test, costs_path, "test")[1], costs)
    if reported_on is not None:
        _warn_about_flattery(chosen_on, reported_on)
    start = time.perf_counter()
    outcome = run(chosen_on, reported_on, how)
    seconds = time.perf_counter() - start
    base = {"search": {"accuracy": chosen_on.accuracy, "samples": len(chosen_on)}}
    if reported_on is not None:
        base["test"] = {"accuracy": reported_on.accuracy, "samples": len(reported_on)}
    if json:
        front = _front(outcome, chosen_on, reported_on)
        facts = {"method": how.method, "points": outcome.solved, "seconds": seconds, "base": base}
        print_json("search", {**facts, "front": front})
    else:
        _show(outcome, how, seconds)


def _warn_about_flattery(chosen_on: Problem, reported_on: Problem) -> None:
    """Warn if the model is suspiciously accurate on the search samples, probably because it was trained on them."""
    problems = (chosen_on, reported_on)
    shares = [problem.accuracy for problem in problems]
    pooled = sum(problem.accuracy * len(problem) for problem in problems) / sum(map(len, problems))
    error = (pooled * (1 - pooled) * (1 / len(chosen_on) + 1 / len(reported_on))) ** 0.5
    if shares[0] - shares[1] > 3 * error:
        log.warning(
            "the model is right on %.1f %% of the samples to search on and on %.1f %% of the test samples, more than "
            "chance explains: it was probably trained on the former. The chosen configurations lose more than reported",
            100 * shares[0],
            100 * shares[1],
        )


def _read(path: Path, costs_path: Path, split: str) -> tuple[CostTable, Records]:
    """Read records and costs, both in the format of this project or both in that of the DyCE release."""
    from dyce_calibration.records import Records
    from dyce_calibration.search.costs import read_costs
    from dyce_calibration.search.released import read_released_costs, read_released_records
    from dyce_runtime.bundle.arrays import read_arrays

    if "preds" in read_arrays(path, "records", error=DataError):
        costs = read_released_costs(costs_path)
        return costs, read_released_records(path, costs, split)
    records = Records.load(path)
    return read_costs(costs_path), records.of_split(split)


def _front(outcome: Outcome, chosen_on: Problem, reported_on: Problem | None) -> list[dict[str, Any]]:
    """Return the whole front as JSON-compatible values."""

    def figures(problem: Problem, accuracy: float, cost: float) -> dict[str, float]:
        return {"accuracy": accuracy, "loss": problem.accuracy - accuracy, "cost": cost}

    points: list[dict[str, Any]] = [
        {
            "exits": {e: {"head": on.head, "threshold": on.threshold} for e, on in chosen_on.exits(setting).items()},
            "search": figures(chosen_on, accuracy, cost),
            "certified": None,
        }
        for setting, accuracy, cost in zip(
            outcome.settings, outcome.accuracy.tolist(), outcome.cost.tolist(), strict=True
        )
    ]
    if reported_on is not None and outcome.test_accuracy is not None and outcome.test_cost is not None:
        pairs = zip(points, outcome.test_accuracy.tolist(), outcome.test_cost.tolist(), strict=True)
        for point, accuracy, cost in pairs:
            point["test"] = figures(reported_on, accuracy, cost)
    return points


def _show(outcome: Outcome, how: Search, seconds: float) -> None:
    chosen = range(0, len(outcome.settings), max(1, len(outcome.settings) // _ROWS))
    columns = [(outcome.cost, outcome.accuracy)]
    if outcome.test_cost is not None and outcome.test_accuracy is not None:
        columns.append((outcome.test_cost, outcome.test_accuracy))
    marks = ("", "| ")[: len(columns)]
    print_table(
        f"{len(chosen)} of the {len(outcome.settings)} points of the front, on the search samples"
        f"{' | on the test samples' if len(columns) > 1 else ''}\n"
        f"({how.method}, {outcome.solved} weights, {seconds:.2f} s; --json prints them all, with thresholds)",
        tuple(mark + name for mark in marks for name in ("cost", "accuracy")),
        [[text for cost, accuracy in columns for text in (f"{cost[i]:.1%}", f"{accuracy[i]:.2%}")] for i in chosen],
    )
