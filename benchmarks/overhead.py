"""Measure the overhead of the runtime, against the uncut model and against the least that the samples need.

``python -m benchmarks.overhead`` exports four models with inputs of 224 pixels and three untrained heads each through
the command line, and uses the Fashion-MNIST bundle of ``python -m benchmarks.savings`` as well. With one and with two
threads, each in its own process, everything that is compared runs in turn on the same inputs; ratios are medians over
rounds. It writes ``results/overhead.json`` and ``docs/overhead.md``.

The references run in plain ``onnxruntime.InferenceSession.run`` with the same thread pool: the uncut model, and the
model truncated at an exit as one graph with the heads on the way (``benchmarks/examples/truncated.py``).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from benchmarks import machine
from benchmarks.examples import fashion_mnist, fashion_nine
from benchmarks.examples.truncated import write_truncated
from dyce_runtime import Session, load
from dyce_runtime.bundle.configuration import Configuration, ExitSetting, float32_midpoint
from dyce_runtime.bundle.manifest import FINAL, UNCUT
from dyce_runtime.execution.contracts import ExecutionContext
from dyce_runtime.execution.trace import head_answers
from dyce_runtime.inputs.datasets import open_dataset
from dyce_runtime.measure.batching import measure_best_batch
from dyce_targets.cpu import onnxruntime_cpu

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "overhead.json"
PAGE = HERE.parent / "docs" / "overhead.md"
CACHE = Path("benchmarks/.cache/overhead")
MODELS = {
    "resnet50": "3,7,12",
    "vit_tiny_patch16_224": "3,6,9",
    "tf_efficientnet_lite2": "6,12,17",
    "convnext_atto": "3,6,9",
}
MIX = (0.50, 0.25, 0.15, 0.10)
BATCH = 32
_TURNS = 20_000

Images = NDArray[np.float32]
Run = Callable[[], object]


@dataclass(frozen=True)
class Subject:
    """A bundle with inputs.

    Attributes:
        mixed: a configuration under which the inputs take several exits.
    """

    name: str
    session: Session
    images: Images
    mixed: Configuration


def export(name: str) -> Path:
    """Export a model with random weights through the command line, unless its bundle exists."""
    path = CACHE / f"{name}.dyce"
    if not path.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        size = ["--input-size", "3,224,224"]
        fashion_mnist.dyce("export", f"timm:{name}", "--exits", MODELS[name], "-o", str(path), *size)
    return path


def never(session: Session) -> Configuration:
    """Return the configuration with every exit on and none ever taken."""
    on = {exit.id: ExitSetting(exit.heads[0].type, 1.0) for exit in session.manifest.exits if exit.id != FINAL}
    return Configuration("never", on)


def forced(session: Session, images: Images) -> Configuration:
    """Return the configuration with thresholds at which the shares of :data:`MIX` take each exit."""
    confidences = _confidences(session, images)
    remaining = np.ones(len(images), np.bool_)
    settings = {}
    for exit, confidence, share in zip(session.manifest.exits, confidences, MIX, strict=False):
        falling = np.sort(confidence[remaining])[::-1]
        count = round(share * len(images))
        threshold = float32_midpoint(falling[count], falling[count - 1])
        settings[exit.id] = ExitSetting(exit.heads[0].type, threshold)
        remaining &= confidence <= np.float32(threshold)
    return Configuration("forced mix", settings)


def _confidences(session: Session, images: Images) -> list[NDArray[np.float32]]:
    said = [head_answers(session.device, session.manifest, {"image": image[None]}) for image in images]
    exits = session.manifest.exits[:-1]
    return [np.concatenate([one[exit.id, exit.heads[0].type].score for one in said]) for exit in exits]


def plain(path: Path) -> Callable[[Images], object]:
    """Open a graph in a plain onnxruntime session that shares the thread pool."""
    options = onnxruntime.SessionOptions()
    options.use_per_session_threads = False
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name, outputs = session.get_inputs()[0].name, [output.name for output in session.get_outputs()]
    return lambda images: session.run(outputs, {name: images})


def in_turn(runs: Sequence[Callable[[int], float]], rounds: int) -> NDArray[np.float64]:
    """Run all contenders in every round and return the seconds (contenders, rounds).

    The order is random in every round, since the previous contender determines what the caches contain.
    """
    for run in runs:
        for turn in range(3):
            run(turn)
    found = np.empty((len(runs), rounds))
    random = np.random.default_rng(0)
    for turn in range(rounds):
        for index in random.permutation(len(runs)):
            found[index, turn] = runs[index](turn)
    return found


def timed(run: Run) -> float:
    """Return the seconds of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def ratio(above: NDArray[np.float64], below: NDArray[np.float64]) -> float:
    """Return the median of the ratios of all rounds."""
    return float(np.median(above / below))


def picture(images: Images, turn: int) -> Images:
    """Return one image (1, C, H, W) in freshly written memory, as after preprocessing, so that it is in the caches."""
    return images[turn % len(images)][None].copy()


def seams(subject: Subject, rounds: int) -> dict[str, float]:
    """Compare ``full``, and all exits on but none taken, with the uncut model in a plain session."""
    session, images = subject.session, subject.images
    uncut = plain(session.bundle.file(session.manifest.piece(UNCUT).file))
    on = never(session)

    def call(configuration: str | Configuration) -> Callable[[int], float]:
        def run(turn: int) -> float:
            session.use(configuration)
            image = picture(images, turn)
            return timed(lambda: session(image))

        return run

    def alone(turn: int) -> float:
        image = picture(images, turn)
        return timed(lambda: uncut(image))

    heads = [lambda turn: _heads_alone(session, picture(images, turn))]
    found = in_turn([alone, call("full"), call(on), *heads], rounds)
    return {
        "uncut_ms": float(np.median(found[0]) * 1e3),
        "heads_ms": float(np.median(found[3]) * 1e3),
        "full": ratio(found[1], found[0]),
        "none_taken": ratio(found[2], found[0] + found[3]),
    }


def _heads_alone(session: Session, images: Images) -> float:
    """Return the seconds that the first heads of all exits take, on tensors that the segments compute."""
    seconds = 0.0
    with session.device.context(len(images)) as context:
        context.set_input("image", images)
        for index, exit in enumerate(session.manifest.exits[:-1]):
            context.run(f"segment_{index:02d}")
            seconds += timed(partial(_decide, context, exit.heads[0].piece))
    return seconds


def _decide(context: ExecutionContext, head: str) -> None:
    context.run(head)
    context.read("confidence")


def efficiency(subject: Subject, rounds: int) -> dict[str, Any]:
    """Return the time of the truncated graph of each sample's exit, divided by the runtime's; one sample per call."""
    session, images = subject.session, subject.images
    ideal = truncated(subject)
    session.use(subject.mixed)
    exits = [int(session(image[None]).exit[0]) for image in images]

    def need(turn: int) -> float:
        image, graph = picture(images, turn), ideal[exits[turn % len(images)]]
        return timed(lambda: graph(image))

    def ours(turn: int) -> float:
        image = picture(images, turn)
        return timed(lambda: session(image))

    found = in_turn([need, ours], rounds)
    taken = np.array([exits[turn % len(images)] for turn in range(rounds)])
    shares = np.bincount(exits, minlength=len(session.manifest.exits)) / len(exits)
    medians = np.array([[np.median(row[taken == exit]) for exit in np.unique(taken)] for row in found])
    needed, took = medians @ shares[np.unique(taken)]
    return {"share_per_exit": shares.tolist(), "efficiency": float(needed / took)}


def throughput(subject: Subject, rounds: int) -> dict[str, float]:
    """Return the sum of the times that the samples of a batch need, divided by the runtime's; one batch per call.

    A sample needs the time of the truncated graph of its exit, alone or as a share of a batch, whichever is less. The
    runtime divides the batch into chunks of the size that ``dyce bench --write-cost-table --batch`` finds best.
    """
    session, images = subject.session, subject.images
    ideal = truncated(subject)
    session.use(subject.mixed)
    batches = [images[start : start + BATCH] for start in range(0, len(images) - BATCH + 1, BATCH)]
    exits = sorted(ideal)

    def need(exit: int, batch: int) -> Callable[[int], float]:
        def run(turn: int) -> float:
            part = batches[turn % len(batches)][:batch]
            return timed(lambda: ideal[exit](part)) / batch

        return run

    best = measure_best_batch(session, batches[0])
    options = {"threads": session.spec.threads, "pool": "global", "max_batch": best, "allow_untrained": True}
    with load(session.bundle.path, **options) as chunked:
        chunked.use(subject.mixed)

        def ours(turn: int) -> float:
            return timed(lambda: chunked(batches[turn % len(batches)]))

        found = in_turn([ours, *(need(exit, batch) for exit in exits for batch in (1, BATCH))], rounds)
    medians = np.median(found, axis=1)
    least = {exit: float(medians[1 + 2 * k : 3 + 2 * k].min()) for k, exit in enumerate(exits)}
    needed = [sum(least[int(e)] for e in session(batch).exit) for batch in batches]
    taken = np.array([np.median(found[0][k :: len(batches)]) for k in range(len(batches))])
    return {"batch": BATCH, "in_chunks_of": best, "efficiency": float(np.median(np.array(needed) / taken))}


def truncated(subject: Subject) -> dict[int, Callable[[Images], object]]:
    """Return for every exit of the mixed configuration, by its index, the model truncated there."""
    folder = CACHE / f"{subject.name}_truncated"
    folder.mkdir(parents=True, exist_ok=True)
    graphs = write_truncated(subject.session.bundle, subject.mixed, folder)
    return {exit: plain(path) for exit, path in graphs.items()}


def own_share(subject: Subject, threads: int, rounds: int) -> float:
    """Return the microseconds of a call that are spent outside the engine, with three exits on and none taken."""
    engine_call, inside = onnxruntime_cpu._engine_call, 0.0

    def watched(*bound: Any) -> Run:
        call = engine_call(*bound)

        def run() -> None:
            nonlocal inside
            inside += timed(call)

        return run

    onnxruntime_cpu._engine_call = watched
    images, found = subject.images, []
    with load(subject.session.bundle.path, threads=threads, pool="global", allow_untrained=True) as session:
        exits = session.manifest.exits[:3]
        session.use(Configuration("three", {exit.id: ExitSetting(exit.heads[0].type, 1.0) for exit in exits}))
        for turn in range(rounds):
            image, inside = picture(images, turn), 0.0
            found.append(timed(lambda image=image: session(image)) - inside)  # type: ignore[misc]
    onnxruntime_cpu._engine_call = engine_call
    return float(np.median(found) * 1e6)


def switching(subject: Subject, rounds: int) -> dict[str, float]:
    """Return the 99 % quantiles, in microseconds, of the time to change the active configuration.

    Measured in a tight loop, and right after an inference.
    """
    session, image = subject.session, subject.images[:1]
    own = [never(session), subject.mixed]
    for configuration in (*own, UNCUT):
        session.use(configuration)
    tight = [timed(lambda k=k: session.use(own[k % 2])) for k in range(_TURNS)]  # type: ignore[misc]
    named = [timed(lambda: session.use(UNCUT)) for _ in range(_TURNS)]
    cold = []
    for turn in range(rounds):
        session(image)
        cold.append(timed(lambda turn=turn: session.use(own[turn % 2])))  # type: ignore[misc]
    found = {"tight_loop": tight, "tight_loop_by_name": named, "after_an_inference": cold}
    return {name: float(np.percentile(seconds, 99) * 1e6) for name, seconds in found.items()}


def fashion(threads: int) -> Subject:
    """Return the Fashion-MNIST bundle, test images, and the configuration that was chosen by milliseconds."""
    session = load(fashion_nine.CACHE / f"spans_{threads}.dyce", threads=threads, pool="global")
    data = open_dataset(f"{fashion_mnist.DEBIAN}#test")
    images = session.preprocess(data.images(range(0, len(data), 10)))
    names = [name for name in session.bundle.configurations.named if name.startswith("milliseconds")]
    return Subject("fashion_nine", session, images, session.bundle.configuration(names[-1]))


def subject_of(name: str, threads: int) -> Subject:
    """Return a model with random weights, random images, and a configuration that forces a mix of exits.

    Only time is measured. The images differ in scale, since untrained heads have nearly the same confidence for all
    noise images of the same scale.
    """
    session = load(export(name), threads=threads, pool="global", allow_untrained=True)
    shape = session.manifest.input.shape[1:]
    random = np.random.default_rng(0)
    images = random.normal(size=(2 * BATCH, *map(int, shape))) * 10 ** random.uniform(-3, 0, (2 * BATCH, 1, 1, 1))
    images = images.astype(np.float32)
    return Subject(name, session, images, forced(session, images))


def measure(threads: int, seconds: float) -> dict[str, Any]:
    """Measure all figures with ``threads`` threads, each contender for about ``seconds``."""
    results: dict[str, Any] = {}
    for name in [*MODELS, "fashion_nine"]:
        subject = fashion(threads) if name == "fashion_nine" else subject_of(name, threads)
        with subject.session as session:
            rounds = int(seconds / _call_seconds(session, subject.images[:1]))
            results[name] = {
                "rounds": rounds,
                **seams(subject, rounds),
                "batch_1": efficiency(subject, rounds),
                "batch_32": throughput(subject, max(20, rounds // BATCH)),
                "own_share_us": own_share(subject, threads, rounds // 4),
                "switching_us": switching(subject, rounds),
            }
        print(threads, name, json.dumps(results[name]), flush=True)
    return results


def _call_seconds(session: Session, image: Images) -> float:
    return float(np.median([timed(lambda: session.run_uncut(image)) for _ in range(9)]))


def missed(threads: dict[str, Any]) -> str:
    """Return the part of the page that lists which limits are exceeded, and in which rows."""
    limits = {
        "full": lambda row: row["full"] <= 1.01,
        "none taken": lambda row: row["none_taken"] <= 1.04,
        "efficiency": lambda row: row["batch_1"]["efficiency"] >= 0.95,
        "efficiency of a batch of 32": lambda row: row["batch_32"]["efficiency"] >= 0.90,
        "own": lambda row: row["own_share_us"] <= 25,
        "switch in a tight loop": lambda row: row["switching_us"]["tight_loop"] <= 1,
        "switch after an inference": lambda row: row["switching_us"]["after_an_inference"] <= 15,
    }
    rows = [(f"{model} ({name})", row) for name, found in threads.items() for model, row in found.items()]
    kept, broken = [], []
    for limit, holds in limits.items():
        names = [name for name, row in rows if not holds(row)]
        if not names:
            kept.append(limit)
        else:
            who = "every model" if len(names) == len(rows) else ", ".join(names)
            broken.append(f"- *{limit}*: {len(names)} of {len(rows)} ({who})")
    return "\n".join(["**Limits that are missed**", "", *broken, "", f"Kept by all: {', '.join(kept) or 'none'}."])


def page(results: dict[str, Any]) -> str:
    """Return the text of ``docs/overhead.md``."""
    facts = machine.sentence(results["environment"])
    lines = [
        "# What the runtime costs beside the engine",
        "",
        "Ratios of times of one run, taken in turn on the same inputs, one picture per call unless said otherwise. "
        "*full*: `full` against the uncut model in one plain onnxruntime session (at most 1.01). *none taken*: three exits "
        "on and never taken, every seam paid, against the uncut model and the heads' own time (at most 1.04; nine exits on "
        "Fashion-MNIST). *efficiency*: what the samples need, each as one graph truncated at its exit with the heads on "
        "the way, over what the runtime takes, with the shares of the samples leaving at the exits that stand beside it (at "
        "least 0.95; 0.90 with a batch of 32). *own*: microseconds of a call outside the "
        "engine, no exit taken (at most 25 with three exits). *switch*: 99 % quantile of turning the knob in microseconds, "
        f"in a tight loop and right after an inference (at most 1 and 15). Made by `python -m benchmarks.overhead`; {facts}.",
        "",
        missed(results["threads"]),
    ]
    for name, found in results["threads"].items():
        lines += [
            "",
            f"## {name}",
            "",
            "| model | uncut ms | full | none taken | leave at the exits, % | efficiency | batch of 32, in chunks of | own | switch |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {model} | {row['uncut_ms']:.2f} | {row['full']:.3f} | {row['none_taken']:.3f} | "
            f"{' '.join(f'{100 * share:.0f}' for share in row['batch_1']['share_per_exit'])} | "
            f"{row['batch_1']['efficiency']:.3f} | {row['batch_32']['efficiency']:.3f}, {row['batch_32']['in_chunks_of']} | {row['own_share_us']:.0f} | "
            f"{row['switching_us']['tight_loop']:.2f}, {row['switching_us']['after_an_inference']:.1f} |"
            for model, row in found.items()
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=15, help="for each contender, about")
    seconds = parser.parse_args().seconds
    for name in MODELS:
        export(name)
    results = {
        "environment": machine.describe("onnxruntime", "numpy"),
        "threads": {f"{n} thread{'s' if n > 1 else ''}": machine.apart(measure, n, seconds) for n in (1, 2)},
    }
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    PAGE.write_text(page(results))


if __name__ == "__main__":
    main()
