"""Test whether the exact search finds the optimum of 100 small random problems, which are also solved by brute force.

``python -m benchmarks.searching.brute_force`` takes about a minute on one core. A problem counts as solved only if, for
every weight, the best setting found reaches the lowest objective of all settings, to 1e-12. It writes
``results/brute_force.json`` and ``docs/brute-force.md``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.searching.small_problems import every_setting, make_small, objective
from dyce_calibration.search import exact, published
from dyce_calibration.search.problem import Problem, Setting

HERE = Path(__file__).parents[1]
RESULTS = HERE / "results" / "brute_force.json"
PAGE = HERE.parent / "docs" / "brute-force.md"
SEEDS = range(1000, 1100)
WEIGHTS = (0.2, 0.4, 0.6, 0.8, 0.9)
SAME = 1e-12


def by_exact(problem: Problem, *, around: bool = True) -> Sequence[Setting]:
    """Return the best setting of the front for every weight."""
    front = exact.search(problem, WEIGHTS, around=around).front
    points = front.points()
    best = [points[np.argmin(objective(problem, weight, points, front.bound[points]))] for weight in WEIGHTS]
    return [front.setting(int(point)) for point in best]


METHODS: dict[str, Callable[[Problem], Sequence[Setting]]] = {
    "exact": by_exact,
    "exact, sweeps alone": lambda problem: by_exact(problem, around=False),
    "one-pass": lambda problem: published.onepass(problem, WEIGHTS),
}


def measure(seed: int) -> dict[str, Any]:
    """Return, for every method and weight, the objective found minus the lowest objective of all settings."""
    problem = make_small(seed)
    right, cost = every_setting(problem)
    at = [int(np.argmin(objective(problem, weight, right, cost))) for weight in WEIGHTS]
    lowest = [objective(problem, weight, right[i], cost[i]) for weight, i in zip(WEIGHTS, at, strict=True)]

    def reached(setting: Setting, weight: float) -> float:
        figures = problem.evaluate(setting)  # independent of how the search adds up gain and cost
        return float(objective(problem, weight, round(figures.accuracy * len(problem)), figures.cost))

    return {
        "seed": seed,
        "settings": len(right),
        "optima": len({(right[i], cost[i]) for i in at}),
        "above": {
            name: [reached(*found) - low for *found, low in zip(method(problem), WEIGHTS, lowest, strict=True)]
            for name, method in METHODS.items()
        },
    }


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Summarise all problems by method."""
    above = {name: np.array([row["above"][name] for row in rows]) for name in METHODS}
    assert min(a.min() for a in above.values()) >= -SAME, "brute force has missed a setting"
    return {
        name: {
            "problems_solved": int((a <= SAME).all(1).sum()),
            "weights_solved": int((a <= SAME).sum()),
            "worse_than_onepass": int((a > above["one-pass"] + SAME).sum()),
            "mean_above": float(a.mean()),
            "largest_above": float(a.max()),
        }
        for name, a in above.items()
    }


def page(results: dict[str, Any]) -> str:
    """Return the text of ``docs/brute-force.md``."""
    facts = machine.sentence(results["environment"])
    rows = results["problems"]
    settings = [row["settings"] for row in rows]
    optima = float(np.mean([row["optima"] for row in rows]))
    total = len(rows) * len(WEIGHTS)
    lines = [
        "# The exact search next to brute force",
        "",
        f"{len(rows)} random problems of 3 positions x 2 head types x 40 samples, with random costs and confidences that "
        "are higher where a head is right. Brute force looks at everything that a setting can do: every head or none "
        f"at every position, every threshold between two confidences, {min(settings)} to {max(settings)} settings a "
        f"problem. The objective is `w * (1 - accuracy / base) + (1 - w) * cost` for w = {', '.join(map(str, WEIGHTS))}, "
        f"which have {optima:.1f} different optima a problem on average. A problem is *solved* if the setting found, run "
        f"on the records, reaches the lowest objective to {SAME:g} for every weight. Made by `python -m "
        f"benchmarks.searching.brute_force`; {facts}.",
        "",
        f"| search | solved, of {len(rows)} | weights solved, of {total} | worse than one-pass, of {total} | "
        "above the optimum, mean | largest |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {r['problems_solved']} | {r['weights_solved']} | {r['worse_than_onepass']} | {r['mean_above']:.1e} | "
        f"{r['largest_above']:.1e} |"
        for name, r in results["methods"].items()
    ]
    lines += [
        "",
        "*sweeps alone* leaves out what the search does after its weights are solved: looking around the front and "
        "restarting from there. Records of tens of millions of confidences leave little time for that, and brute force "
        "cannot follow there: these figures say nothing about them.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    rows = [measure(seed) for seed in SEEDS]
    results = {"environment": machine.describe("numpy", "scipy"), "methods": summarise(rows), "problems": rows}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    PAGE.write_text(page(results))


if __name__ == "__main__":
    main()
