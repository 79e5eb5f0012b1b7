"""Fashion-MNIST from start to end: train a small network, export it with exits, and measure it against the uncut model.

``python -m benchmarks.examples.fashion_mnist`` needs Debian's ``dataset-fashion-mnist``, or ``--data FOLDER`` with the
four IDX files. It trains on 50,000 of the training images, which takes about ten minutes on two cores, and keeps the
weights in ``benchmarks/.cache``. It exports through the command line, with the other 10,000 images as ``--val``, which
the network has not seen, and measures on the 10,000 test images. It writes ``results/fashion_mnist.json`` and
``docs/fashion-mnist.md``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import machine
from benchmarks.digits import ResidualNet, train
from dyce_runtime import open_bundle
from dyce_runtime.bundle.manifest import Preprocessing
from dyce_runtime.inputs.datasets import open_dataset
from dyce_runtime.inputs.preprocessing import preprocess

HERE = Path(__file__).parents[1]
# Relative to the repository, in which every command runs, so that results do not contain paths of a machine.
CACHE = Path("benchmarks/.cache/fashion_mnist")
RESULTS = HERE / "results" / "fashion_mnist.json"
PAGE = HERE.parent / "docs" / "fashion-mnist.md"
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
INPUT = Preprocessing(resize=28, crop=(28, 28), interpolation="bilinear", mean=(0.286,), std=(0.353,))
EXITS = "1,2,4"
EPOCHS = 8
UNSEEN = 10_000


def make_model() -> torch.nn.Module:
    """Return an untrained network with six residual blocks for 28x28 greyscale images, about 20 MMACs."""
    return ResidualNet(widths=(16, 16, 32, 32, 64, 64), strides=(1, 1, 2, 1, 2, 1))


def divide(data: Path) -> dict[str, Path]:
    """Divide the training images into two files: ``fit`` for training, and ``val``, which only the search uses."""
    CACHE.mkdir(parents=True, exist_ok=True)
    dataset = open_dataset(f"{data}#train")
    order = np.random.default_rng(0).permutation(len(dataset))
    assert isinstance(dataset.items, np.ndarray)
    assert dataset.labels is not None
    parts = {"fit": order[UNSEEN:], "val": order[:UNSEEN]}
    files = {name: CACHE / f"{name}.npz" for name in parts}
    for name, rows in parts.items():
        if not files[name].is_file():
            np.savez_compressed(files[name], images=dataset.items[rows], labels=dataset.labels[rows])
    return files


def trained(
    model: torch.nn.Module, pictures: Path, weights: Path, *, epochs: int, bf16: bool = False
) -> torch.nn.Module:
    """Return the model with the weights of a file. If the file does not exist, train the model and write it."""
    if not weights.is_file():
        dataset = open_dataset(pictures)
        assert dataset.labels is not None
        images = torch.from_numpy(preprocess(dataset.images(range(len(dataset))), INPUT))
        weights.parent.mkdir(parents=True, exist_ok=True)
        labels, checkpoint = torch.from_numpy(dataset.labels), weights.with_suffix(".checkpoint")
        train(model, images, labels, epochs=epochs, batch=128, augment=True, bf16=bf16, checkpoint=checkpoint)
        torch.save(model.state_dict(), weights)
    model.load_state_dict(torch.load(weights, weights_only=True))
    return model.eval()


def prepare(data: Path) -> None:
    """Divide the training images and train the network, unless that is in the cache."""
    files = divide(data)
    torch.manual_seed(0)
    trained(make_model(), files["fit"], CACHE / "model.pt", epochs=EPOCHS)


def dyce(*arguments: str) -> dict[str, Any]:
    """Run the command line as a user would, and return the JSON document that it prints."""
    done = subprocess.run(
        [sys.executable, "-c", "from dyce_export.cli.main import dyce; dyce()", *arguments, "--json", "--quiet"],
        check=True,
        stdout=subprocess.PIPE,
        cwd=HERE.parent,
    )
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def export(model: str, weights: Path, exits: str, files: dict[str, Path], output: Path, *more: str) -> dict[str, Any]:
    """Export a trained network for these images."""
    numbers = ["--input-size", "1,28,28", "--mean", str(INPUT.mean[0]), "--std", str(INPUT.std[0]), "--crop-pct", "1"]
    data = ["--data", str(files["fit"]), "--val", str(files["val"]), "-o", str(output)]
    return dyce("export", str(weights), "--model", model, *numbers, "--exits", exits, *data, *more, "--force")


def bench(data: Path, threads: int) -> dict[str, Any]:
    """Measure every configuration on the test images, one per call."""
    bundle = str(CACHE / "model.dyce")
    return dyce("bench", bundle, "--data", f"{data}#test", "--limit", "10000", "--threads", str(threads))


def page(results: dict[str, Any]) -> str:
    """Return the text of ``docs/fashion-mnist.md``."""
    lines = [
        "# Fashion-MNIST",
        "",
        f"A residual network of {results['mmacs']:.0f} MMACs with exits behind blocks {EXITS}. Heads are fitted on the "
        "50,000 pictures that trained the network; configurations are chosen on pictures that it has never seen; all "
        "figures below are for the 10,000 test pictures, one per call, uncut model and configurations in turn in one "
        "run. Made by `python -m benchmarks.examples.fashion_mnist`; " + machine.sentence(results["environment"]) + ".",
    ]
    for name, document in results["bench"].items():
        exits = list(document["configurations"][0]["share_per_exit"])
        lines += [
            "",
            f"## {name}",
            "",
            f"| configuration | accuracy | mean ms | p50 | p99 | time | MACs | {' | '.join(f'exit {e}' for e in exits)} |",
            "|---|---|---|---|---|---|---|" + "---|" * len(exits),
            row("uncut model", document["uncut"], "1.00", "100 %", ["" for _ in exits]),
        ]
        lines += [
            row(
                c["name"],
                c,
                f"{c['time_ratio_to_uncut']:.2f}",
                f"{c['macs_share']:.0%}",
                [f"{s:.0%}" for s in c["share_per_exit"].values()],
            )
            for c in document["configurations"]
        ]
        lines += ["", document["verdict"]]
    return "\n".join(lines) + "\n"


def row(name: str, figures: dict[str, Any], time: str, macs: str, shares: list[str]) -> str:
    """Return a row of the table."""
    milliseconds = [f"{figures[key]:.3f}" for key in ("mean_ms", "p50_ms", "p99_ms")]
    return "| " + " | ".join([name, f"{figures['accuracy']:.2%}", *milliseconds, time, macs, *shares]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DEBIAN, help="folder with the four IDX files")
    parser.add_argument("--prepare", action="store_true", help="train only")
    arguments = parser.parse_args()
    prepare(arguments.data)
    if arguments.prepare:
        return
    exported = export(
        "benchmarks.examples.fashion_mnist:make_model",
        CACHE / "model.pt",
        EXITS,
        divide(arguments.data),
        CACHE / "model.dyce",
    )
    manifest = open_bundle(CACHE / "model.dyce").manifest
    results = {
        "environment": machine.describe("torch", "onnxruntime", "numpy"),
        "mmacs": manifest.model.macs / 1e6,
        "export": exported,
        "bench": {f"{n} thread{'s' if n > 1 else ''}": bench(arguments.data, n) for n in (1, 2)},
    }
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    PAGE.write_text(page(results))


if __name__ == "__main__":
    main()
