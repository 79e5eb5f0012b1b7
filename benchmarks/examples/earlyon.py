"""Compare a bundle with the eager wrapper of ``earlyon`` 0.3.0 from PyPI: same weights, heads, thresholds and images.

``python -m benchmarks.examples.earlyon`` needs ``pip install --no-deps earlyon==0.3.0`` and the bundle of ``python -m
benchmarks.examples.fashion_nine``. The dependency ``fvcore`` of ``earlyon`` is optional: it only estimates FLOPs, once,
before the first prediction. Two configurations are compared: the bundle's ``balanced``, with nine exits on, and three
exits with linear heads, whose thresholds are searched for the same loss. Both are in a bundle with spans for them, as
``dyce search -o`` writes it. The script writes ``results/earlyon.json`` and ``docs/earlyon.md``.

``EarlyExitWrapper`` takes any backbone, the names of modules to hook, and any module as the head of a hooked module. A
hook runs the head, divides by its temperature, and raises an exception that ends the backbone's forward pass when the
confidence reaches the threshold. The heads of ``earlyon`` have two linear layers, so our heads are read from the
bundle's ONNX files and passed as modules. ``earlyon`` exits at a confidence ``>=`` the threshold and we at ``>``, so
its threshold is the next larger float32.

Each block of images goes to the contenders in rotating order, one image per call, after a few warm-up calls. Torch's
threads spin after a call, which could slow down what runs next, so everything is measured twice: with all contenders in
one process, and with a process for each, of which only one is active at a time. The ratio reported is the one less
favourable to us. Only calls are timed: for ``earlyon`` neither the conversion to a tensor nor the argmax of its logits.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from earlyon import EarlyExitConfig, EarlyExitWrapper, ExitPoint
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

from benchmarks import machine
from benchmarks.examples import fashion_mnist, fashion_nine
from dyce_calibration.search.problem import make_problem
from dyce_calibration.search.run import Search, run
from dyce_export.writing.rewrite import rewrite
from dyce_runtime import Session, load, open_bundle
from dyce_runtime.bundle.configuration import Configuration, Configurations, Entry
from dyce_runtime.bundle.manifest import FINAL
from dyce_runtime.bundle.reader import Bundle
from dyce_runtime.inputs.datasets import open_dataset

HERE = Path(__file__).parents[1]
RESULTS = HERE / "results" / "earlyon.json"
PAGE = HERE.parent / "docs" / "earlyon.md"
BUNDLE = fashion_nine.CACHE / "earlyon.dyce"
THREADS = 2
HEAD, EXITS, LOSS = "mlp1x1000", ("2", "4", "7"), 0.01
BALANCED, THREE = "balanced", "three exits, linear heads"
WAYS = ("one process", "a process each")
# The largest ratio that we promise, and the fraction of equal labels below which a comparison would be meaningless.
PROMISED, SAME = 0.5, 0.999
_BLOCK = 250
_WARM_UP_CALLS = 20


class Answer(NamedTuple):
    """The duration and the result of a call.

    Attributes:
        exit: index of the exit taken in the manifest's exits.
    """

    seconds: float
    label: int
    exit: int


Call = Callable[[NDArray[np.float32]], Answer]


@dataclass(frozen=True)
class Answers:
    """The results of one contender on all N images.

    Attributes:
        seconds, labels, exits: (N,).
        starts: indices of the first images of the blocks.
    """

    seconds: NDArray[np.float64]
    labels: NDArray[np.int64]
    exits: NDArray[np.int64]
    starts: NDArray[np.int64]

    def sums(self) -> NDArray[np.float64]:
        """Return the seconds of each block."""
        found: NDArray[np.float64] = np.add.reduceat(self.seconds, self.starts)
        return found


def make_bundle() -> None:
    """Write the bundle of :mod:`benchmarks.examples.fashion_nine` with the two configurations and their spans."""
    source = open_bundle(fashion_nine.BUNDLE)
    exits = {"full": {}, BALANCED: source.configuration(BALANCED).exits, THREE: three_exits().exits}
    rewrite(source, Configurations(named={name: Entry(on) for name, on in exits.items()}), BUNDLE, force=True)


def three_exits() -> Configuration:
    """Return the cheapest setting of three exits with linear heads that loses at most a point on the unseen images."""
    records = fashion_nine.chosen_on()
    part = records.with_columns([records.column(exit, HEAD) for exit in EXITS])
    problem = make_problem(part, fashion_nine.costs())
    setting = run(problem, None, Search()).cheapest(LOSS)
    assert setting is not None
    return Configuration(THREE, problem.exits(setting))


class Head(nn.Module):
    """Global average pooling, then linear layers with ReLUs between them."""

    def __init__(self, layers: list[nn.Linear]) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))[:-1]

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x.mean((2, 3)))
        return logits


def read_head(bundle: Bundle, piece: str) -> tuple[Head, float]:
    """Read a head of a bundle as a module, and its temperature."""
    graph = onnx.load(bundle.file(bundle.manifest.piece(piece).file)).graph
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    operations = [node.op_type for node in graph.node]
    depth = operations.count("Gemm")
    body = ["ReduceMean", *["Gemm", "Relu"] * (depth - 1), "Gemm"]
    assert operations == [*body, "Div", "Softmax", "ReduceMax", "ArgMax"], operations
    layers = []
    for index in range(depth):
        weight, bias = (torch.tensor(values[f"layer{index}.{part}"]) for part in ("weight", "bias"))
        layers.append(nn.Linear(weight.shape[1], weight.shape[0]))
        layers[-1].load_state_dict({"weight": weight, "bias": bias})
    return Head(layers), float(values["temperature"])


def base() -> nn.Module:
    """Return the trained base as a torch module."""
    torch.set_num_threads(THREADS)
    model = fashion_nine.make_model()
    model.load_state_dict(torch.load(fashion_nine.CACHE / "base.pt", weights_only=True))
    return model.eval()


def wrapped(bundle: Bundle, configuration: Configuration) -> EarlyExitWrapper:
    """Wrap the base with ``earlyon``, with the heads, temperatures and thresholds of a configuration."""
    points, heads, temperatures, thresholds = [], {}, {FINAL: 1.0}, []
    for exit in bundle.manifest.exits:
        if (on := configuration.exits.get(exit.id)) is None:
            continue
        piece = next(head.piece for head in exit.heads if head.type == on.head)
        heads[piece], temperatures[piece] = read_head(bundle, piece)
        points.append(ExitPoint(piece, exit.module, heads[piece].layers[0].in_features))
        thresholds.append(float(np.nextafter(np.float32(on.threshold), np.float32(2))))
    config = EarlyExitConfig(
        backbone="custom",
        num_classes=bundle.manifest.model.num_classes,
        exit_points=points,
        confidence_thresholds=thresholds,
        temperatures=temperatures,
    )
    return EarlyExitWrapper(base(), heads, nn.Identity(), config, input_shape=(1, 1, 28, 28)).eval()


@cache
def session() -> Session:
    """Open the bundle, once per process."""
    return load(BUNDLE, threads=THREADS)


def ours(configuration: str) -> Call:
    model = session()
    chosen = model.bundle.configuration(configuration)

    def call(image: NDArray[np.float32]) -> Answer:
        model.use(chosen)
        start = time.perf_counter()
        result = model(image)
        return Answer(time.perf_counter() - start, int(result.label[0]), int(result.exit[0]))

    return call


def uncut(configuration: str) -> Call:
    model, last = session(), len(session().manifest.exits) - 1

    def call(image: NDArray[np.float32]) -> Answer:
        start = time.perf_counter()
        label = model.run_uncut(image)
        return Answer(time.perf_counter() - start, int(label[0]), last)

    return call


def theirs(configuration: str) -> Call:
    bundle = open_bundle(BUNDLE)
    chosen = bundle.configuration(configuration)
    model = wrapped(bundle, chosen)
    exits = [index for index, exit in enumerate(bundle.manifest.exits) if exit.id in chosen.exits or exit.id == FINAL]

    @torch.inference_mode()
    def call(image: NDArray[np.float32]) -> Answer:
        x = torch.from_numpy(image)
        start = time.perf_counter()
        result = model(x, mode="inference")
        seconds = time.perf_counter() - start
        return Answer(seconds, int(result.prediction.argmax()), exits[result.exit_taken])

    return call


def torch_uncut(configuration: str) -> Call:
    model, last = base(), len(open_bundle(BUNDLE).manifest.exits) - 1

    @torch.inference_mode()
    def call(image: NDArray[np.float32]) -> Answer:
        x = torch.from_numpy(image)
        start = time.perf_counter()
        logits = model(x)
        return Answer(time.perf_counter() - start, int(logits.argmax()), last)

    return call


OURS, THEIRS = "dyce", "earlyon, its eager wrapper"
CONTENDERS = {OURS: ours, THEIRS: theirs, "uncut in onnxruntime": uncut, "uncut in torch, eager": torch_uncut}


@cache
def contender(name: str, configuration: str) -> Call:
    """Return a contender, which is made once per process."""
    return CONTENDERS[name](configuration)


@cache
def pictures(data: Path) -> NDArray[np.float32]:
    """Return all test images, preprocessed."""
    dataset = open_dataset(f"{data}#test")
    return session().preprocess(dataset.images(range(len(dataset))))


def block(name: str, configuration: str, data: Path, rows: NDArray[np.int64]) -> list[Answer]:
    """Run one contender on some images, one per call."""
    call, images = contender(name, configuration), pictures(data)
    for row in rows[:_WARM_UP_CALLS]:
        call(images[row : row + 1])
    return [call(images[row : row + 1]) for row in rows]


@contextmanager
def workers(way: str) -> Iterator[dict[str, ProcessPoolExecutor]]:
    """Start a process for each contender, or one for all."""
    with ExitStack() as stack:
        count = 1 if way == WAYS[0] else len(CONTENDERS)
        context = get_context("spawn")
        pools = [stack.enter_context(ProcessPoolExecutor(1, mp_context=context)) for _ in range(count)]
        yield {name: pools[index % count] for index, name in enumerate(CONTENDERS)}


def measure(way: str, configuration: str, data: Path, rows: NDArray[np.int64]) -> dict[str, Answers]:
    """Run all contenders on all images, block by block, never two at a time."""
    found: dict[str, list[Answer]] = {name: [] for name in CONTENDERS}
    blocks = np.array_split(rows, -(-len(rows) // _BLOCK))
    names = list(CONTENDERS)
    with workers(way) as pools:
        for name in names:  # load and warm up everything before the first block
            pools[name].submit(block, name, configuration, data, rows[:_BLOCK]).result()
        for turn, part in enumerate(blocks):
            for shift in range(len(names)):
                name = names[(turn + shift) % len(names)]
                found[name] += pools[name].submit(block, name, configuration, data, part).result()
    starts = np.cumsum([0, *map(len, blocks)])[:-1]
    return {name: gathered(answers, starts) for name, answers in found.items()}


def gathered(answers: list[Answer], starts: NDArray[np.int64]) -> Answers:
    """Convert answers to arrays."""
    seconds, labels, exits = (np.array(column) for column in zip(*answers, strict=True))
    return Answers(seconds, labels, exits, starts)


def agreement(found: dict[str, Answers]) -> dict[str, float]:
    """Return the fractions of the images with the same label, and with the same exit, on both sides."""
    mine, other = found[OURS], found[THEIRS]
    shares = {
        "labels": float((mine.labels == other.labels).mean()),
        "exits": float((mine.exits == other.exits).mean()),
    }
    if shares["labels"] < SAME:
        raise SystemExit(f"the two sides label only {shares['labels']:.2%} of the pictures alike: nothing to compare")
    return shares


def compare(way: str, configuration: str, data: Path, rows: NDArray[np.int64]) -> dict[str, Any]:
    """Measure all figures of one configuration, with one process or several."""
    found = measure(way, configuration, data, rows)
    truth = open_dataset(f"{data}#test").labels
    assert truth is not None
    exits = [exit.id for exit in open_bundle(BUNDLE).manifest.exits]
    shares = np.bincount(found[OURS].exits, minlength=len(exits)) / len(rows)
    ratios = found[OURS].sums() / found[THEIRS].sums()
    print(f"{configuration}, {way}: {np.median(ratios):.3f}", file=sys.stderr, flush=True)
    return {
        "agreement": agreement(found),
        "ratio": float(np.median(ratios)),
        "ratio_of_blocks": [float(ratios.min()), float(ratios.max())],
        "share_per_exit": {exit: float(share) for exit, share in zip(exits, shares, strict=True) if share},
        "contenders": {
            name: {
                "mean_ms": float(answers.seconds.mean() * 1e3),
                "p50_ms": float(np.median(answers.seconds) * 1e3),
                "p99_ms": float(np.percentile(answers.seconds, 99) * 1e3),
                "accuracy": float((answers.labels == truth[rows]).mean()),
            }
            for name, answers in found.items()
        },
    }


def page(results: dict[str, Any]) -> str:
    """Return the text of ``docs/earlyon.md``."""
    verdict = "kept" if results["ratio"] <= PROMISED else "missed"
    facts = machine.sentence(results["environment"])
    lines = [
        "# Next to earlyon",
        "",
        f"**{results['ratio']:.2f}** of the mean latency of `earlyon` 0.3.0 in its eager wrapper (promised: at most "
        f"{PROMISED}; {verdict}), the less favourable of all ratios below.",
        "",
        f"The base of {results['mmacs']:.0f} MMACs and the heads of `python -m benchmarks.examples.fashion_nine`: the same torch "
        "weights, temperatures, thresholds and pictures on both sides, the heads' weights read from the bundle, "
        f"{results['samples']} Fashion-MNIST test pictures, one per call, {THREADS} threads. A ratio is the median over "
        f"blocks of {_BLOCK} pictures, which go to one contender after the other, in rotating order. Torch's threads spin "
        "for a while after a call and ours sleep, so it was measured both with all contenders in one process and with a "
        "process for each; the larger ratio counts. Only the call is timed: `earlyon` gets a tensor that is ready and "
        f"returns logits, we return label and confidence as well. Made by `python -m benchmarks.examples.earlyon`; {facts}.",
    ]
    for name, ways in results["configurations"].items():
        shares = ways[WAYS[0]]["share_per_exit"].items()
        same = [min(found["agreement"][what] for found in ways.values()) for what in ("labels", "exits")]
        lines += [
            "",
            f"## {name}",
            "",
            f"Labels agree on {same[0]:.2%} of the pictures, exits on {same[1]:.2%}. Pictures leave at "
            + ", ".join(f"{exit} ({share:.1%})" for exit, share in shares)
            + ".",
            "",
            "| processes | contender | accuracy | mean ms | p50 ms | p99 ms | mean over that of earlyon (blocks) |",
            "|---|---|---|---|---|---|---|",
            *(line for way, found in ways.items() for line in rows_of(way, found)),
        ]
    return "\n".join(lines) + "\n"


def rows_of(way: str, found: dict[str, Any]) -> list[str]:
    """Return the rows of a table."""
    low, high = found["ratio_of_blocks"]
    ratios = {OURS: f"**{found['ratio']:.3f}** ({low:.2f} to {high:.2f})"}
    return [
        f"| {way} | {name} | {row['accuracy']:.2%} | {row['mean_ms']:.3f} | {row['p50_ms']:.3f} | {row['p99_ms']:.3f} | "
        f"{ratios.get(name, '')} |"
        for name, row in found["contenders"].items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=fashion_mnist.DEBIAN, help="folder with the four IDX files")
    parser.add_argument("--limit", type=int, default=10_000, help="test pictures, evenly spread")
    arguments = parser.parse_args()
    make_bundle()
    rows = np.unique(np.linspace(0, 9_999, min(arguments.limit, 10_000)).astype(int))
    configurations = {
        name: {way: compare(way, name, arguments.data, rows) for way in WAYS} for name in (BALANCED, THREE)
    }
    results = {
        "environment": machine.describe("torch", "onnxruntime", "numpy", "earlyon"),
        "mmacs": fashion_nine.costs().full / 1e6,
        "samples": len(rows),
        "ratio": max(found["ratio"] for ways in configurations.values() for found in ways.values()),
        "exits": {
            name: {e: [on.head, on.threshold] for e, on in open_bundle(BUNDLE).configuration(name).exits.items()}
            for name in configurations
        },
        "configurations": configurations,
    }
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    PAGE.write_text(page(results))


if __name__ == "__main__":
    main()
