"""Test whether certificates keep what they promise, with 1,000 draws of samples from a known population.

``python -m benchmarks.searching.guarantee`` uses the records of ``python -m benchmarks.examples.fashion_nine``. The
front is searched on the search split. The certification and test splits and the test images are the population, so the
losses on it are known exactly. Samples are drawn from it with replacement, the front is certified on each draw, and the
promised loss is compared with what the certified configurations lose on the population. It writes
``results/guarantee.json`` and ``docs/guarantee.md``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.examples import fashion_nine
from dyce_calibration.promises.certify import certified
from dyce_calibration.promises.choose import MOST_KEPT
from dyce_calibration.search.problem import make_problem
from dyce_calibration.search.run import Search, run, thinned

HERE = Path(__file__).parents[1]
RESULTS = HERE / "results" / "guarantee.json"
PAGE = HERE.parent / "docs" / "guarantee.md"
DRAWS = 1000
PROMISES = [(0.005, 0.05), (0.01, 0.05), (0.01, 0.1), (0.02, 0.05)]
SIZES = [1000, 2500, 5000]


def measure(losses: np.ndarray, costs: np.ndarray, size: int, epsilon: float, delta: float) -> dict[str, Any]:
    """Certify on draws of one size.

    Args:
        losses: (configurations, population) float32, the most expensive configuration first: loss minus that of the
            full model.
        costs: (configurations,) mean cost on the population, relative to the full model.
        size: number of samples of a draw.
    """
    random = np.random.default_rng(size)
    truth = losses.mean(1)
    broken, nothing, paid = 0, 0, []
    for _ in range(DRAWS):
        drawn = random.integers(0, losses.shape[1], size)
        count = certified((row[drawn] for row in losses), epsilon, delta)
        nothing += count == 0
        # The promise is for all certified configurations, not only for the cheapest.
        broken += bool((truth[:count] > epsilon).any())
        paid.append(costs[count - 1] if count else 1.0)
    return {
        "samples": size,
        "epsilon": epsilon,
        "delta": delta,
        "broken": broken / DRAWS,
        "allowed": delta + 3 * float(np.sqrt(delta * (1 - delta) / DRAWS)),
        "nothing_certified": nothing / DRAWS,
        "mean_saving": 1 - float(np.mean(paid)),
        "median_saving": 1 - float(np.median(paid)),
    }


def page(results: dict[str, Any]) -> str:
    """Return the text of ``docs/guarantee.md``."""
    facts = machine.sentence(results["environment"])
    lines = [
        "# Whether certificates keep what they promise",
        "",
        f"{DRAWS} draws with replacement from {results['population']} recorded Fashion-MNIST samples (a base of 124 MMACs, "
        "9 positions, 5 head types). *broken*: share of the draws in which any certified configuration loses more than "
        "promised on the whole population; *allowed*: delta plus three standard errors. *saving*: cost saved by the "
        "cheapest certified configuration, nothing where none is certified. Made by `python -m benchmarks.searching.guarantee`; "
        f"{facts}.",
        "",
        "| samples | epsilon | delta | broken | allowed | nothing certified | mean saving | median saving |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['samples']} | {r['epsilon']:.3f} | {r['delta']:.2f} | {r['broken']:.3f} | {r['allowed']:.3f} | "
        f"{r['nothing_certified']:.3f} | {r['mean_saving']:.1%} | {r['median_saving']:.1%} |"
        for r in results["rows"]
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    unseen, costs = fashion_nine.unseen(), fashion_nine.costs()
    found = run(make_problem(unseen.of_split("search"), costs), None, Search())
    settings = [setting for setting in thinned(found.settings, MOST_KEPT)[::-1] if any(setting)]
    rest = unseen.take(np.isin(unseen.split, ["certification", "test"]))
    population = [make_problem(records, costs) for records in (rest, fashion_nine.tested())]
    losses = np.stack([np.concatenate([part.lost(setting) for part in population]) for setting in settings])
    sizes = [len(part) for part in population]
    paid = np.array(
        [np.average([part.evaluate(setting).cost for part in population], weights=sizes) for setting in settings]
    )
    rows = [measure(losses, paid, size, *promise) for size in SIZES for promise in PROMISES]
    results = {"environment": machine.describe("numpy"), "population": sum(sizes), "rows": rows}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    PAGE.write_text(page(results))


if __name__ == "__main__":
    main()
