"""Fashion-MNIST with savers: what a base of 495 MMACs and a pool of six small networks save, combined in several ways.

``python -m benchmarks.examples.fashion_savers --train`` trains the networks on 50,000 of the training images, which
takes about two hours on two cores. Weights stay in ``benchmarks/.cache``, and interrupted training resumes.

Without ``--train`` it selects a saver through the command line and exports the base with exits, with the saver, with
both, with an exit sequence network after the saver, and with two savers. It chooses thresholds on images on which
nothing was trained, and measures loss and time on the 10,000 test images, in turn with the uncut model, one image per
call. It writes ``results/fashion_savers.json`` and ``docs/savers.md``.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from benchmarks import machine, savings
from benchmarks.digits import ResidualNet
from benchmarks.examples import fashion_mnist
from dyce_calibration.recorder import record
from dyce_calibration.records import Records
from dyce_calibration.search.costs import CostTable, macs_of
from dyce_calibration.search.problem import make_problem
from dyce_calibration.search.run import Search, run
from dyce_calibration.search.select import restrict_records
from dyce_runtime import load, open_bundle
from dyce_runtime.bundle.manifest import BUILTIN, FINAL
from dyce_runtime.bundle.reader import RECORDS
from dyce_runtime.inputs.datasets import open_dataset

HERE = Path(__file__).parents[1]
RESULTS = HERE / "results" / "fashion_savers.json"
PAGE = HERE.parent / "docs" / "savers.md"
CACHE = Path("benchmarks/.cache/fashion_savers")
EPOCHS = 20
BASE_EPOCHS = 10
EXITS = "1,2,3,4,5,6,7,8,9"
# The bundle has the other heads as well, which are not used in this comparison.
SEQUENCE = "saver and exit sequence network"
#: The bundles that are compared.
PATHS = {
    "exits alone": CACHE / "exits.dyce",
    "saver": CACHE / "saver.dyce",
    "saver and exits": CACHE / "saver_exits.dyce",
    SEQUENCE: CACHE / "sequence.dyce",
    "two savers": CACHE / "two.dyce",
}
_INPUT = ["--input-size", "1,28,28", "--mean", "0.286", "--std", "0.353", "--crop-pct", "1"]

#: Name of each network to the widths and strides of its blocks.
SHAPES = {
    "slim8": ((8, 8, 16, 16, 32, 32), (2, 1, 2, 1, 1, 1)),
    "short16": ((16, 32, 64, 64), (2, 2, 2, 1)),
    "fine8": ((8, 8, 16, 16, 32, 32), (1, 1, 2, 1, 2, 1)),
    "slim16": ((16, 16, 32, 32, 64, 64), (2, 1, 2, 1, 2, 1)),
    "slim24": ((24, 24, 48, 48, 96, 96), (2, 1, 2, 1, 2, 1)),
    "slim32": ((32, 32, 64, 64, 128, 128), (2, 1, 2, 1, 2, 1)),
}
#: Their factories, for the command line: ``benchmarks.examples.fashion_savers:nets.slim8``.
nets = SimpleNamespace(**{name: partial(ResidualNet, *shape) for name, shape in SHAPES.items()})


def make_base() -> torch.nn.Module:
    """Return the untrained base, :mod:`benchmarks.examples.fashion_nine`'s at twice the width, about 495 MMACs."""
    return ResidualNet(widths=(64,) * 3 + (128,) * 3 + (256,) * 3, strides=(1, 1, 1, 2, 1, 1, 2, 1, 1))


def prepare(data: Path) -> None:
    """Train the pool and the base, unless they are in the cache. Interrupted training resumes."""
    files = fashion_mnist.divide(data)
    for name in SHAPES:
        torch.manual_seed(0)
        fashion_mnist.trained(getattr(nets, name)(), files["fit"], CACHE / f"{name}.pt", epochs=EPOCHS, bf16=True)
    torch.manual_seed(0)
    fashion_mnist.trained(make_base(), files["fit"], CACHE / "base.pt", epochs=BASE_EPOCHS, bf16=True)


def pool_of() -> dict[str, str]:
    """Return the networks of the pool as the command line names them, by short names."""
    return {name: f"benchmarks.examples.fashion_savers:nets.{name}={CACHE / name}.pt" for name in SHAPES}


def select(files: dict[str, Path]) -> dict[str, Any]:
    """Compare the pool through the command line, which composes the best saver by milliseconds with the base."""
    data = ["--data", str(files["fit"]), "--val", str(files["val"]), *_INPUT]
    base = [str(CACHE / "base.pt"), "--model", "benchmarks.examples.fashion_savers:make_base", *data]
    how = ["--pool", ",".join(pool_of().values()), "--cache", str(CACHE / "pool"), "--threads", "1"]
    return fashion_mnist.dyce("select-saver", *base, *how, "-o", str(CACHE / "saver.dyce"), "--force")


def correlation(candidates: list[dict[str, Any]]) -> float:
    """Return Spearman's rank correlation of dC in MACs with the cost that the search finds at half a point's loss."""
    both = [[one["delta_macs"] for one in candidates], [_searched(one) for one in candidates]]
    # Equal values get the mean of their ranks.
    ranks = [[sum((other < one) + (other == one) / 2 for other in values) for one in values] for values in both]
    return float(np.corrcoef(*ranks)[0, 1])


def _searched(one: dict[str, Any]) -> float:
    """Return the cost found by the search; 1, that of the base, if no configuration with the saver is cheaper."""
    return float(one["search"]["cost"]) if one["search"] else 1.0


def best_pair(judged: dict[str, Any]) -> tuple[str, str]:
    """Return the two savers with which the search on their records finds the lowest cost at half a point's loss."""
    base, whole = judged["base"]["macs"], _recorded("make_base")
    found = {one["name"]: (_recorded(one["model"]), one["macs"]) for one in judged["candidates"]}
    costs: dict[tuple[str, str], float] = {}
    for pair in combinations(sorted(found, key=lambda name: found[name][1]), 2):
        (first, a), (second, b) = (found[name] for name in pair)
        records = Records.of_single_label(
            (("saver0", BUILTIN), ("saver1", BUILTIN)),
            np.stack([first.predictions[:, -1], second.predictions[:, -1], whole.predictions[:, -1]], axis=1),
            np.stack([first.scores[:, -1], second.scores[:, -1], whole.scores[:, -1]], axis=1),
            whole.labels,
            whole.hashes,
            whole.split,
        )
        heads = {f"saver{n}": {BUILTIN: 0.0} for n in range(2)}
        backbone = {"saver0": float(a), "saver1": float(a + b), FINAL: float(a + b + base)}
        table = CostTable("macs", backbone, heads, float(base), savers=("saver0", "saver1"))
        outcome = run(make_problem(records.of_split("search"), table), None, Search())
        costs[pair] = float(outcome.cost[np.flatnonzero(outcome.base - outcome.counted <= savings.LOSS)[0]])
    return min(costs, key=costs.__getitem__)


def _recorded(name: str) -> Records:
    """Return the records of a model in the pool."""
    (bundle,) = CACHE.glob(f"pool/{name}-*.dyce")
    return Records.load(bundle / RECORDS)


def export_all(files: dict[str, Path], judged: dict[str, Any]) -> None:
    """Export the bundles that are compared, unless they are in the cache."""
    best = judged["candidates"][0]["name"]
    weights, model = CACHE / "base.pt", "benchmarks.examples.fashion_savers:make_base"
    if not PATHS["exits alone"].is_dir():
        fashion_mnist.export(model, weights, EXITS, files, PATHS["exits alone"], "--epochs", "12")
    data = ["--data", str(files["fit"]), "--val", str(files["val"])]
    if not PATHS["saver and exits"].is_dir():
        fashion_mnist.dyce(
            "export", str(PATHS["exits alone"]), "--saver", best, *data, "-o", str(PATHS["saver and exits"])
        )
    if not PATHS[SEQUENCE].is_dir():
        esn = ["--saver", best, "--esn", *data, "-o", str(PATHS[SEQUENCE])]
        fashion_mnist.dyce("export", str(PATHS["exits alone"]), *esn)
    if not PATHS["two savers"].is_dir():
        (whole,) = CACHE.glob("pool/make_base-*.dyce")
        savers = [word for name in best_pair(judged) for word in ("--saver", name)]
        fashion_mnist.dyce("export", str(whole), *savers, *data, "-o", str(PATHS["two savers"]))


def measure(name: str, path: Path, data: Path) -> dict[str, Any]:
    """Choose thresholds of a bundle on unseen images, and measure loss and time on the test images."""
    pictures, unseen = open_dataset(f"{data}#test"), Records.load(path / RECORDS)
    with load(path, "onnxruntime", threads=2) as session:
        tested = record(session, pictures, np.full(len(pictures), "test"))
    if name == SEQUENCE:
        kept = {(exit, type) for exit, type in unseen.heads if not type.startswith("mlp")}
        unseen, tested = restrict_records(unseen, kept), restrict_records(tested, kept)
    searched = unseen.take(unseen.split != "temperature")
    chosen = savings.search(macs_of(open_bundle(path).manifest), name, searched, tested, (savings.LOSS, 0.0))
    return savings.timed(path, chosen, CACHE / "spans.dyce", f"{data}#test", 1)


def page(results: dict[str, Any]) -> str:
    """Return the text of ``docs/savers.md``."""
    judged = results["judged"]
    base = judged["base"]
    uncut = results["bundles"]["saver"]["uncut"]
    lines = [
        "# Savers on Fashion-MNIST",
        "",
        f"A base of {base['macs'] / 1e6:.0f} MMACs that is right on {uncut['accuracy']:.2%} of the 10,000 test pictures and takes "
        f"{uncut['mean_ms']:.2f} ms for one, on one thread; and six smaller networks. All were trained on 50,000 pictures; on the "
        "other 10,000 training pictures the saver is selected and thresholds are chosen. Made by "
        "`python -m benchmarks.examples.fashion_savers`; " + machine.sentence(results["environment"]) + ".",
        "",
        "## Which saver",
        "",
        "`dyce select-saver`, on its search split. *takes*: the share of the pictures on which the base is no better. *dC*: cost "
        "relative to the base less that share. *searched*: what the exact search reaches with this saver alone at a loss of half a "
        "point there.",
        "",
        "| saver | right | MMACs | ms | takes | dC, MACs | dC, ms | searched |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in judged["candidates"]:
        lines.append(
            f"| {one['model'].removeprefix('nets.')} | {one['accuracy']:.1%} | {one['macs'] / 1e6:.1f} | {one['ms']:.3f} | {one['share']:.1%} | "
            f"{one['delta_macs']:+.3f} | {one['delta_ms']:+.3f} | {_searched(one):.1%} |"
        )
    lines += [
        "",
        f"Rank correlation (Spearman) between dC in MACs and what the search reaches: {results['correlation']:.2f}.",
        "",
        "## What is saved at a loss of half a point",
        "",
        "Configurations of each bundle: the cheapest that loses at most 0.5 points on the pictures that thresholds were chosen "
        "on, where it was measured the cheapest that loses nothing there, and the cheapest of that front that loses at most 0.5 "
        "points on test. Timed on the test pictures, one per call, next to the uncut model, in turn. Nearly every picture leaves at "
        "the first saver, and a saver may be as right as the base on the pictures of the search and less so on others: half a "
        "point there is more on test.",
        "",
        "| bundle, chosen how | loss on search | loss on test | MACs saved on test | time saved |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['name']} | {100 * row['loss_on_search']:.2f} | {100 * row['loss_on_test']:.2f} | {1 - row['macs_share']:.1%} | "
        f"{1 - row['time_ratio_to_uncut']:.1%} |"
        for found in results["bundles"].values()
        for row in found["configurations"]
    ]
    lines += ["", f"The two savers are {' and '.join(results['pair'])}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=fashion_mnist.DEBIAN, help="folder with the four IDX files")
    parser.add_argument("--only", choices=[*PATHS], help="measure this bundle alone again, and keep the other results")
    parser.add_argument("--train", action="store_true", help="train what is not in the cache, and stop")
    arguments = parser.parse_args()
    if arguments.train:
        prepare(arguments.data)
        return
    if arguments.only:
        results = json.loads(RESULTS.read_text())
        paths = {arguments.only: PATHS[arguments.only]}
        results["bundles"] |= measured(paths, arguments.data)
        write(results)
        return
    files = fashion_mnist.divide(arguments.data)
    judged = select(files)
    export_all(files, judged)
    results = {
        "environment": machine.describe("onnxruntime", "torch", "numpy"),
        "judged": judged,
        "correlation": correlation(judged["candidates"]),
        "pair": [network.model.name for network in open_bundle(PATHS["two savers"]).manifest.savers],
        "bundles": measured(PATHS, arguments.data),
    }
    write(results)


def measured(paths: dict[str, Path], data: Path) -> dict[str, Any]:
    """Measure each bundle in its own process."""
    return {name: machine.apart(measure, name, path, data) for name, path in paths.items()}


def write(results: dict[str, Any]) -> None:
    """Write the results and the page."""
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    PAGE.write_text(page(results))


if __name__ == "__main__":
    main()
