"""Compare the engines on a CPU: the time of the uncut model and of the segments, the logits, and the exits taken.

``python -m benchmarks.targets`` uses the bundles of ``benchmarks.overhead``. With one and with two threads, each in its
own process, all engines run in turn on the same inputs: the uncut model, and three exits (Fashion-MNIST: nine) that are
on and never taken. Then every engine classifies the 10,000 test images of Fashion-MNIST under a configuration that was
chosen in onnxruntime. It writes ``results/targets.json`` and ``docs/openvino.md``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import machine
from benchmarks.examples import fashion_mnist, fashion_nine
from benchmarks.overhead import MODELS, Images, export, in_turn, never, picture, ratio, timed
from dyce_runtime import Session
from dyce_runtime.bundle.configuration import FULL, Configuration
from dyce_runtime.bundle.reader import open_bundle
from dyce_runtime.execution.contracts import TargetSpec
from dyce_runtime.execution.routing import Result
from dyce_runtime.inputs.datasets import open_dataset

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "targets.json"
PAGE = HERE.parent / "docs" / "openvino.md"
# The others are compared with the first.
ENGINES = [("onnxruntime", "float32"), ("openvino", "float32"), ("openvino", "bfloat16")]
# Engines may disagree about a confidence that is this near to a threshold.
NEAR = 1e-4


def open_all(path: Path, threads: int) -> dict[str, Session]:
    """Open the bundle in every engine.

    Thread pools are private, since a shared pool, whose threads spin, would take the cores from the next engine.
    """
    bundle = open_bundle(path)
    return {
        f"{target} {precision}": Session(
            bundle, target, TargetSpec(threads=threads, precision=precision), allow_untrained=True
        )
        for target, precision in ENGINES
    }


def speed(sessions: dict[str, Session], images: Images, seconds: float) -> dict[str, Any]:
    """Measure the milliseconds of the uncut model, the ratio of the segments to it, and the error of the logits.

    The error is relative to the logits of the first engine.
    """

    def call(session: Session, configuration: str | Configuration) -> Callable[[int], float]:
        def run(turn: int) -> float:
            session.use(configuration)
            image = picture(images, turn)
            return timed(lambda: session(image))

        return run

    wanted = [(session, what) for session in sessions.values() for what in (FULL, never(session))]
    runs = [call(*one) for one in wanted]
    rounds = max(20, int(seconds / np.median([runs[0](turn) for turn in range(9)])))
    found = in_turn(runs, rounds)
    results, reference = {}, None
    for index, (name, session) in enumerate(sessions.items()):
        session.use(FULL)
        logits = session(images).logits
        reference = logits if reference is None else reference
        results[name] = {
            "uncut_ms": float(np.median(found[2 * index]) * 1e3),
            "against_first": ratio(found[2 * index], found[0]),
            "chain": ratio(found[2 * index + 1], found[2 * index]),
            "logits": float(np.abs(logits - reference).max() / np.abs(reference - reference.mean(axis=0)).max()),
        }
    return results


def exits(sessions: dict[str, Session]) -> dict[str, Any]:
    """Count the test images of Fashion-MNIST that take another exit than in the first engine; measure accuracies."""
    data = open_dataset(f"{fashion_mnist.DEBIAN}#test")
    first = next(iter(sessions.values()))
    images, labels = first.preprocess(data.images(range(len(data)))), np.array(data.labels)
    found: dict[str, Any] = {}
    for name in [n for n in first.bundle.configurations.named if n.startswith("milliseconds")][-1:]:
        answers: dict[str, Result] = {}
        for engine, session in sessions.items():
            session.use(name)
            answers[engine] = session(images)
        reference = next(iter(answers.values()))
        near = _near(first.bundle.configuration(name), first, reference)
        found = {
            engine: {
                "elsewhere": int((answer.exit != reference.exit).sum()),
                "elsewhere_and_not_near": int(((answer.exit != reference.exit) & ~near).sum()),
                "accuracy": float((answer.label == labels).mean()),
            }
            for engine, answer in answers.items()
        }
    return found


def _near(configuration: Configuration, session: Session, result: Result) -> NDArray[np.bool_]:
    """Return (N,) bool: whether each sample exited with a confidence within :data:`NEAR` of the threshold there."""
    ids = [exit.id for exit in session.manifest.exits]
    thresholds = [configuration.exits[id].threshold if id in configuration.exits else -np.inf for id in ids]
    return np.abs(result.confidence - np.array(thresholds)[result.exit]) < NEAR


def measure(threads: int, seconds: float) -> dict[str, Any]:
    """Measure all models with ``threads`` threads."""
    results: dict[str, Any] = {}
    for name in [*MODELS, "fashion_nine"]:
        path = fashion_nine.CACHE / f"spans_{threads}.dyce" if name == "fashion_nine" else export(name)
        sessions = open_all(path, threads)
        shape = next(iter(sessions.values())).manifest.input.shape[1:]
        images = np.random.default_rng(0).normal(size=(16, *map(int, shape))).astype(np.float32)
        results[name] = speed(sessions, images, seconds)
        if name == "fashion_nine":
            results["exits"] = exits(sessions)
        for session in sessions.values():
            session.close()
        print(threads, name, json.dumps(results[name]), flush=True)
    return results


def page(results: dict[str, Any]) -> str:
    """Return the text of ``docs/openvino.md``."""
    lines = [
        "# OpenVINO beside onnxruntime",
        "",
        "One picture per call, all engines in turn on the same inputs. *time*: the uncut model against onnxruntime's. "
        "*chain*: three exits (Fashion-MNIST: nine) on and none taken, heads included, against the uncut model in the same "
        "engine. *logits*: largest difference from onnxruntime's, relative to what depends on the input. Made by `python -m "
        f"benchmarks.targets`; {machine.sentence(results['environment'])}.",
    ]
    for name, found in results["threads"].items():
        lines += [
            "",
            f"## {name}",
            "",
            "| model | engine | uncut ms | time | chain | logits |",
            "|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {model} | {engine} | {row['uncut_ms']:.2f} | {row['against_first']:.2f} | {row['chain']:.3f} | "
            f"{row['logits']:.0e} |"
            for model, engines in found.items()
            if model != "exits"
            for engine, row in engines.items()
        ]
        lines += [
            "",
            "Fashion-MNIST's 10,000 test pictures under a configuration with several exits on:",
            "",
            f"| engine | leave elsewhere | of these not within {NEAR:g} of a threshold | accuracy |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| {engine} | {row['elsewhere']} | {row['elsewhere_and_not_near']} | {row['accuracy']:.2%} |"
            for engine, row in found["exits"].items()
        ]
    lines += [
        "",
        "In bfloat16 the thresholds that were chosen on float32 records do not hold: samples leave elsewhere. `dyce lower "
        "--precision bfloat16` chooses others, on records made in it: see [lower precisions](precision.md).",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4, help="for each contender, about")
    seconds = parser.parse_args().seconds
    for name in MODELS:
        export(name)
    results = {
        "environment": machine.describe("onnxruntime", "openvino", "numpy"),
        "threads": {f"{n} thread{'s' if n > 1 else ''}": machine.apart(measure, n, seconds) for n in (1, 2)},
    }
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    PAGE.write_text(page(results))


if __name__ == "__main__":
    main()
