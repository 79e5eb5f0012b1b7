"""Compare recipes of head training on the network of ``python -m benchmarks.examples.fashion_mnist``.

``python -m benchmarks.searching.recipes`` trains heads of two types after all six blocks with every recipe and every
seed, on the same features. It searches on one part of the 20,000 images on which nothing was trained, and compares the
fronts on another part. Completed steps stay in ``benchmarks/.cache/recipes``. It writes ``results/recipes.json`` and
``docs/recipes.md``.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import machine
from benchmarks.examples import fashion_mnist
from benchmarks.searching.fronts import cheapest_on_test, hypervolume
from dyce_calibration.heads.training import PUBLISHED, Recipe
from dyce_calibration.search.problem import Problem, make_problem
from dyce_calibration.search.run import Outcome, Search, run
from dyce_export.calibrate import calibrate, macs_of_heads
from dyce_export.graph.backbone import Backbone
from dyce_export.graph.capture import capture
from dyce_export.graph.exit_points import find_exit_points
from dyce_export.progress import Progress
from dyce_runtime.inputs.datasets import Dataset, open_dataset

HERE = Path(__file__).parents[1]
RESULTS = HERE / "results" / "recipes.json"
PAGE = HERE.parent / "docs" / "recipes.md"
WORK = Path("benchmarks/.cache/recipes")
TYPES = ("mlp1x1000", "mlp3x500")
SEEDS = (0,)
OURS = Recipe(epochs=12)
ONE_RATE = replace(OURS, by_width=False)
RECIPES = {
    "ours, 12 epochs": OURS,
    "as published, 50 epochs": PUBLISHED,
    "ours, 12 epochs, half soft targets": replace(OURS, distillation=0.5),
    "ours, 12 epochs, averaged weights": replace(OURS, average=0.999),
    "ours, 30 epochs (the default)": Recipe(),
    "12 epochs, 2e-3 for all layers": replace(ONE_RATE, learning_rate=2e-3),
    "30 epochs, 2e-3 for all layers": replace(ONE_RATE, epochs=30, learning_rate=2e-3),
    "12 epochs, 6e-3 for all layers": replace(ONE_RATE, learning_rate=6e-3),
    "12 epochs, 1.5e-2 for all layers": replace(ONE_RATE, learning_rate=1.5e-2),
}


def unseen(data: Path) -> Dataset:
    """Return the training images that were held out, and the test images."""
    parts = [open_dataset(fashion_mnist.divide(data)["val"]), open_dataset(f"{data}#test")]
    items, labels = np.concatenate([p.items for p in parts]), np.concatenate([p.labels for p in parts])  # type: ignore[misc]
    return Dataset("unseen", items, labels)


def measure(backbone: Backbone, macs: int, fit: Dataset, val: Dataset, recipe: Recipe, seed: int) -> dict[str, Any]:
    """Train heads, search, and evaluate on samples that neither has used."""
    start = time.perf_counter()
    # A folder per seed, so that all recipes share its features.
    work = WORK / str(seed)
    found = calibrate(backbone, fit, val, fashion_mnist.INPUT, work, TYPES, recipe, seed=seed, progress=Progress())
    seconds = time.perf_counter() - start
    costs = macs_of_heads(backbone.points, found.heads, macs)
    rest = found.records.take(np.isin(found.records.split, ["certification", "test"]))
    chosen_on, reported_on = make_problem(found.records.of_split("search"), costs), make_problem(rest, costs)
    outcome = run(chosen_on, reported_on, Search())
    return {
        "seconds": seconds,
        "accuracy_of_heads": ((rest.predictions == rest.labels[:, None]).mean(0)).tolist(),
        "saved_at_half_a_point": saved(outcome, reported_on, 0.005),
        "saved_at_a_point": saved(outcome, reported_on, 0.01),
        "hypervolume": hypervolume(outcome.test_cost, outcome.test_accuracy),  # type: ignore[arg-type]
    }


def saved(outcome: Outcome, reported_on: Problem, loss: float) -> float:
    """Return the fraction of the cost saved by the cheapest point of a front that loses at most ``loss`` on test."""
    assert outcome.test_cost is not None
    return float(1 - outcome.test_cost[cheapest_on_test(outcome, reported_on, loss)])


def page(results: dict[str, Any]) -> str:
    """Return the text of ``docs/recipes.md``."""
    facts = machine.sentence(results["environment"])
    lines = [
        "# Recipes of head training",
        "",
        "Heads of the types mlp1x1000 and mlp3x500 behind each of the six blocks of the network of "
        "[Fashion-MNIST](fashion-mnist.md), fitted on the pictures that trained it. The front is searched on 8,000 pictures "
        "that nothing was trained on; all figures are means over the seeds, on 10,000 others. *saved*: "
        "multiply-accumulates that the cheapest point of the front saves at that loss. Made by "
        f"`python -m benchmarks.searching.recipes`; {facts}.",
        "",
        "| recipe | saved at 0.5 points | saved at 1 point | hypervolume | seeds' hypervolumes |",
        "|---|---|---|---|---|",
    ]
    for name, runs in results["recipes"].items():
        means = {key: float(np.mean([run[key] for run in runs])) for key in runs[0] if key != "accuracy_of_heads"}
        volumes = ", ".join(f"{run['hypervolume']:.4f}" for run in runs)
        lines.append(
            f"| {name} | {means['saved_at_half_a_point']:.1%} | {means['saved_at_a_point']:.1%} | "
            f"{means['hypervolume']:.4f} | {volumes} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    data = fashion_mnist.DEBIAN
    files = fashion_mnist.divide(data)
    torch.manual_seed(0)
    weights = fashion_mnist.CACHE / "model.pt"
    model = fashion_mnist.trained(fashion_mnist.make_model(), files["fit"], weights, epochs=fashion_mnist.EPOCHS)
    program = capture(model, (1, 28, 28))
    points = find_exit_points(program)
    backbone = Backbone(program, points.points)
    fit, val = open_dataset(files["fit"]), unseen(data)
    recipes: dict[str, Any] = {name: [] for name in RECIPES}
    for seed in SEEDS:
        for name, recipe in RECIPES.items():
            done = WORK / f"{seed} {name}.json"
            if not done.is_file():
                done.parent.mkdir(parents=True, exist_ok=True)
                done.write_text(json.dumps(measure(backbone, points.total_macs, fit, val, recipe, seed)))
            recipes[name].append(json.loads(done.read_text()))
    results = {"environment": machine.describe("torch", "numpy"), "recipes": recipes}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    PAGE.write_text(page(results))


if __name__ == "__main__":
    main()
