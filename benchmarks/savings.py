"""Measure what early exits save on Fashion-MNIST at a loss of half a point, in multiply-accumulates and milliseconds.

``python -m benchmarks.savings`` uses the bundle and the records of ``python -m benchmarks.examples.fashion_nine``: a
base of about 124 MMACs with heads of five types at nine positions. Thresholds are searched on images that the base has
not seen, once by MACs and once by the milliseconds that this machine takes for every piece, and evaluated on the 10,000
test images. The configurations are written into a bundle with spans for them, as ``dyce search -o`` does, and timed in
turn with the uncut model, one image per call. It writes ``results/savings.json`` and ``docs/savings.md``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.examples import fashion_mnist, fashion_nine
from benchmarks.searching.fronts import cheapest_on_test
from dyce_calibration.records import Records
from dyce_calibration.search.costs import CostTable, read_costs
from dyce_calibration.search.problem import Problem, Setting, make_problem
from dyce_calibration.search.run import Search, run
from dyce_export.writing.rewrite import rewrite
from dyce_runtime import load, open_bundle
from dyce_runtime.bundle.configuration import Configuration, Configurations, Entry
from dyce_runtime.inputs.datasets import open_dataset
from dyce_runtime.measure.bench import benchmark

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "savings.json"
PAGE = HERE.parent / "docs" / "savings.md"
LOSS = 0.005


@dataclass(frozen=True)
class Found:
    """A configuration and its figures on the search and test samples."""

    configuration: Configuration
    figures: dict[str, Any]


def search(
    costs: CostTable, name: str, unseen: Records, tested: Records, losses: Sequence[float] = (LOSS,)
) -> list[Found]:
    """Search a front, and return configurations of it: chosen on the search samples only, and the best on test.

    Args:
        unseen: records of the search samples.
        tested: records of the test samples.
        losses: allowed losses on the search samples; one configuration is chosen for each.
    """
    chosen_on, reported_on = (make_problem(records, costs) for records in (unseen, tested))
    outcome = run(chosen_on, reported_on, Search())
    found = []
    for loss in losses:
        by_search = outcome.cheapest(loss)
        assert by_search is not None
        lost = f"at most {100 * loss:g} points" if loss else "nothing"
        found.append(describe(f"{name}, loses {lost} on the search samples", by_search, chosen_on, reported_on))
    on_test = outcome.settings[cheapest_on_test(outcome, reported_on, LOSS)]
    best = f"{name}, cheapest of the front that loses at most 0.5 points on test"
    return [*found, describe(best, on_test, chosen_on, reported_on)]


def describe(name: str, setting: Setting, chosen_on: Problem, reported_on: Problem) -> Found:
    """Return a setting as a configuration, with its figures on both sets of samples, in the unit of the search."""
    search, test = (problem.evaluate(setting) for problem in (chosen_on, reported_on))
    figures = {
        "saved_on_search": 1 - search.cost,
        "loss_on_search": search.loss,
        "saved_on_test": 1 - test.cost,
        "loss_on_test": test.loss,
    }
    return Found(Configuration(name, chosen_on.exits(setting)), figures)


def measure(threads: int, data: Path) -> dict[str, Any]:
    """Search in both units, and time every configuration found next to the uncut model."""
    table = fashion_nine.CACHE / f"ms_{threads}.json"
    pictures = f"{data}#test"
    measured = ["--write-cost-table", str(table), "--threads", str(threads), "--limit", "1000"]
    fashion_mnist.dyce("bench", str(fashion_nine.BUNDLE), "--data", pictures, *measured)
    unseen, tested = fashion_nine.chosen_on(), fashion_nine.tested()
    by_time = read_costs(table).with_all_spans()
    found = [
        *search(fashion_nine.costs(), "MACs", unseen, tested),
        *search(by_time, "milliseconds", unseen, tested),
    ]
    return timed(fashion_nine.BUNDLE, found, fashion_nine.CACHE / f"spans_{threads}.dyce", pictures, threads)


def timed(bundle: Path, found: list[Found], spanned: Path, pictures: str, threads: int) -> dict[str, Any]:
    """Write configurations and their spans into a copy of a bundle, and time them next to the uncut model."""
    named = {"full": Entry(exits={}), **{f.configuration.name: Entry(f.configuration.exits) for f in found}}
    rewrite(open_bundle(bundle), Configurations(named=named), spanned, force=True)
    with load(spanned, threads=threads, pool="global") as session:
        timed: dict[str, Any] = benchmark(
            session, open_dataset(pictures), [f.configuration for f in found], limit=10_000
        )
    rows = [
        {**entry, **f.figures, "exits": {e: [on.head, on.threshold] for e, on in f.configuration.exits.items()}}
        for entry, f in zip(timed["configurations"], found, strict=True)
    ]
    return {"uncut": timed["uncut"], "configurations": rows}


def page(results: dict[str, Any]) -> str:
    """Return the text of ``docs/savings.md``."""
    facts = machine.sentence(results["environment"])
    lines = [
        "# What early exits save at a loss of half a point",
        "",
        f"Fashion-MNIST, a base of {results['mmacs']:.0f} MMACs with heads of five types at nine positions. The search weighs "
        "multiply-accumulates, or the milliseconds measured for every piece on this machine. *saved* is in the unit of "
        "the search; *time saved* is what was then measured, with a span for every stretch between two exits that are on "
        "(`dyce search -o`), on the 10,000 test pictures, one per call, in turn with the "
        f"uncut model. Made by `python -m benchmarks.savings`; {facts}.",
    ]
    for name, found in results["threads"].items():
        uncut = found["uncut"]
        lines += [
            "",
            f"## {name}",
            "",
            f"The uncut model is right on {uncut['accuracy']:.2%} and takes {uncut['mean_ms']:.3f} ms.",
            "",
            "| searched in, chosen how | saved on search | loss on search | saved on test | loss on test | MACs saved | time saved |",
            "|---|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {row['name']} | {row['saved_on_search']:.1%} | {100 * row['loss_on_search']:.2f} | "
            f"{row['saved_on_test']:.1%} | {100 * row['loss_on_test']:.2f} | {1 - row['macs_share']:.1%} | "
            f"{1 - row['time_ratio_to_uncut']:.1%} |"
            for row in found["configurations"]
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=fashion_mnist.DEBIAN, help="folder with the four IDX files")
    data = parser.parse_args().data
    results = {
        "environment": machine.describe("onnxruntime", "numpy"),
        "mmacs": fashion_nine.costs().full / 1e6,
        "threads": {f"{n} thread{'s' if n > 1 else ''}": machine.apart(measure, n, data) for n in (1, 2)},
    }
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    PAGE.write_text(page(results))


if __name__ == "__main__":
    main()
