"""Compare the exact search with the published ones: fronts on the same records and costs, and the time of commands.

``python -m benchmarks.searching.search`` needs the records of ``python -m benchmarks.examples.fashion_nine`` (9
positions x 5 head types). Records of the size of ImageNet's are synthetic (``benchmarks.searching.synthetic_records``).
Commands run on one core. It writes ``results/search.json`` and ``docs/search.md``.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.examples import fashion_nine
from benchmarks.searching import synthetic_records
from benchmarks.searching.fronts import hypervolume, shortfall
from dyce_calibration.search.problem import Problem, make_problem
from dyce_calibration.search.released import read_released_costs, read_released_records, write_released
from dyce_calibration.search.run import Outcome, Search, run
from dyce_calibration.search.select import restrict_costs, restrict_records

HERE = Path(__file__).parents[1]
RESULTS = HERE / "results" / "search.json"
PAGE = HERE.parent / "docs" / "search.md"
CACHE = Path("benchmarks/.cache/search")


def compare(chosen_on: Problem, reported_on: Problem, methods: dict[str, int]) -> dict[str, Any]:
    """Compare the fronts of several methods with the exact front.

    Args:
        methods: name of each method to the number of weights.
    """
    found: dict[str, Outcome] = {}
    rows: dict[str, Any] = {}
    for method, weights in methods.items():
        start = time.perf_counter()
        found[method] = run(chosen_on, reported_on, Search(method=method, weights=weights))
        rows[method] = {"weights": weights, "solved": found[method].solved, "seconds": time.perf_counter() - start}
    exact = found["exact"]
    for method, outcome in found.items():
        assert outcome.test_cost is not None
        assert outcome.test_accuracy is not None
        worst = max(shortfall(exact, c, a) for c, a in zip(outcome.cost, outcome.accuracy, strict=True))
        rows[method] |= {
            "points": len(outcome.settings),
            "hypervolume_search": hypervolume(outcome.cost, outcome.accuracy),
            "hypervolume_test": hypervolume(outcome.test_cost, outcome.test_accuracy),
            "largest_cost_saved_on_exact": worst,
        }
    best = run(reported_on, None, Search())
    rows["exact, searched on test"] = {
        "weights": Search().weights,
        "solved": best.solved,
        "points": len(best.settings),
        "hypervolume_test": hypervolume(best.cost, best.accuracy),
    }
    return rows


def command(folder: Path, *words: str) -> dict[str, Any]:
    """Run ``dyce search`` on one core; return its seconds from process start, its peak memory and its own figures."""
    arguments = ["search", "--records", "search.npz", "--costs", "macs.json", "--test", "test.npz", *words, "--json"]
    script = "from dyce_export.cli.main import dyce; dyce()"
    one_core = {**os.environ, "OMP_NUM_THREADS": "1"}
    core = min(os.sched_getaffinity(0))
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=folder,
        env=one_core,
        stdout=subprocess.PIPE,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )
    seconds = time.perf_counter() - start
    document = json.loads(done.stdout)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    return {
        "command_seconds": seconds,
        "search_seconds": document["seconds"],
        "weights": document["points"],
        "points": len(document["front"]),
        "peak_gib": peak,
    }


def fashion_files(folder: Path) -> None:
    """Write records of unseen and of test images in the formats of the DyCE release.

    9 positions x 2 head types x 10,000 samples.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, records in (("search", fashion_nine.unseen()), ("test", fashion_nine.tested())):
        heads = {head for head in records.heads if head[1] in ("mlp1x1000", "mlp3x500")}
        cheaper = restrict_costs(fashion_nine.costs(), heads)
        write_released(restrict_records(records, heads), cheaper, folder / f"{name}.npz", folder / "macs.json")


def speed(folder: Path, published: int, repeats: int) -> dict[str, Any]:
    """Time the exact search in turn with the published one-pass search, which uses SciPy's bounded minimiser.

    Args:
        published: number of weights of the one-pass search.
    """
    exact, onepass = [], []
    for _ in range(repeats):
        exact.append(command(folder))
        onepass.append(command(folder, "--method", "onepass", "--points", str(published)))
    middle = [sorted(runs, key=lambda r: r["command_seconds"])[len(runs) // 2] for runs in (exact, onepass)]
    per_weight = [r["search_seconds"] / r["weights"] for r in middle]
    return {"exact": middle[0], "onepass": middle[1], "ratio_per_weight": per_weight[1] / per_weight[0]}


def page(results: dict[str, Any]) -> str:
    """Return the text of ``docs/search.md``."""
    facts = machine.sentence(results["environment"])
    lines = [
        "# The exact search next to the published ones",
        "",
        "The same records and costs for all, one core. Hypervolume is the area over accuracy 0.80 and under cost 1. "
        "The last column is the most that any point of a front saves against the exact front at the same accuracy or "
        "better on the search samples: 0 or less says that the exact front dominates or equals all of them. *Exact, searched "
        "on test* is no result: it has seen the test samples, and bounds what any search could reach there. Made by "
        f"`python -m benchmarks.searching.search`; {facts}.",
    ]
    for name, rows in results["fronts"].items():
        lines += [
            "",
            f"## {name}",
            "",
            "| method | weights | solved | points | hypervolume, search | hypervolume, test | seconds | saves on exact |",
            "|---|---|---|---|---|---|---|---|",
        ]
        lines += [
            "| "
            + " | ".join(
                [
                    method,
                    *(str(r[key]) for key in ("weights", "solved", "points")),
                    f"{r['hypervolume_search']:.4f}" if "hypervolume_search" in r else "",
                    f"{r['hypervolume_test']:.4f}",
                    f"{r['seconds']:.1f}" if "seconds" in r else "",
                    f"{r['largest_cost_saved_on_exact']:.1e}" if "largest_cost_saved_on_exact" in r else "",
                ]
            )
            + " |"
            for method, r in rows.items()
        ]
    lines += [
        "",
        "## Whole commands, from process start",
        "",
        "| records | method | weights solved | command, s | search, s | peak GiB | one-pass : exact, per weight |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, rows in results["speed"].items():
        for method in ("exact", "onepass"):
            r = rows[method]
            ratio = f"{rows['ratio_per_weight']:.0f}" if method == "onepass" else ""
            lines.append(
                f"| {name} | {method} | {r['weights']} | {r['command_seconds']:.1f} | {r['search_seconds']:.1f} | "
                f"{r['peak_gib']:.2f} | {ratio} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    small, large = CACHE / "fashion", CACHE / "imagenet"
    fashion_files(small)
    large.mkdir(parents=True, exist_ok=True)
    for seed, split in enumerate(("search", "test")):
        synthetic_records.write(large, split, seed)
    # The peak memory reported is the largest of all child processes so far, so the smaller records go first.
    speeds = {
        "Fashion-MNIST, 9 x 2 x 10,000": speed(small, published=20, repeats=3),
        "ImageNet's size, 50 x 5 x 50,000": speed(large, published=1, repeats=1),
    }
    parts = fashion_nine.chosen_on(), fashion_nine.tested()
    fashion = [make_problem(records, fashion_nine.costs()) for records in parts]
    released = read_released_costs(large / "macs.json")
    synthetic = [
        make_problem(read_released_records(large / f"{s}.npz", released, s), released) for s in ("search", "test")
    ]
    fronts = {
        "Fashion-MNIST, 9 positions x 5 types": compare(
            fashion[0], fashion[1], {"exact": 500, "onepass": 550, "circular": 110}
        ),
        "ImageNet's size (made up), 50 positions x 5 types x 50,000": compare(
            synthetic[0], synthetic[1], {"exact": 500, "onepass": 20}
        ),
    }
    results = {"environment": machine.describe("numpy", "scipy"), "fronts": fronts, "speed": speeds}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    PAGE.write_text(page(results))


if __name__ == "__main__":
    main()
