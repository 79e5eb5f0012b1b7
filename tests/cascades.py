"""A small bundle with two savers, and what it must answer (computed by numpy).

The base is that of :mod:`tests.bundles`. The first saver reads pictures of its own size and has an exit, the second one
reads what the base reads; both name two classes the other way round.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from dyce_export.progress import Progress
from dyce_export.savers.compose import Joined, Parts, choose_and_verify, join
from dyce_export.writing.bundle_writer import seal
from dyce_export.writing.staging import staged
from dyce_runtime.bundle import reader as bundle
from dyce_runtime.bundle.configuration import FULL, Configuration, Configurations, Entry, ExitSetting
from dyce_runtime.bundle.documents import write_document
from dyce_runtime.bundle.manifest import (
    ANSWER,
    BUILTIN,
    FINAL,
    SCHEMA_VERSION,
    Exit,
    Head,
    Input,
    Manifest,
    Model,
    Network,
    Piece,
    Preprocessing,
    TensorSpec,
)
from dyce_runtime.bundle.reader import open_bundle
from dyce_runtime.bundle.test_vectors import Vectors, write_vectors
from dyce_runtime.program.operations import Feed, Leave, Operation, Run
from tests import bundles
from tests.bundles import (
    ANSWERS,
    CHANNELS,
    CLASSES,
    EDGE,
    HEAD,
    Answer,
    finish,
    make_bundle,
    make_images,
    with_vectors,
)

SMALL_EDGE = 2
EXITS = ("saver0.2", "saver0", "saver1", "3", "7", FINAL)
HEADS = (HEAD, BUILTIN, BUILTIN, HEAD, HEAD)
# For every class of the base its index among those of the savers.
ORDER = (0, 2, 1, 3, 4)

_random = np.random.default_rng(7)
WEIGHTS = {
    "small_conv": _random.integers(-2, 3, (3, CHANNELS, 1, 1)) / 2,
    "small_linear0": _random.integers(-2, 3, (CLASSES, 3)) / 2,
    "small_linear1": _random.integers(-2, 3, (CLASSES, 3)) * 1.0,
    "second_linear": _random.integers(-2, 3, (CLASSES, CHANNELS)) * 1.0,
}
WEIGHTS = {name: weight.astype(np.float32) for name, weight in WEIGHTS.items()}
_CONSTANTS = {**WEIGHTS, "spatial_axes": np.array([2, 3], np.int64), "class_axis": np.array([-1], np.int64)}


def on(**thresholds: float) -> dict[str, ExitSetting]:
    """Exits that are on: ``on(saver0_2=0.5, saver1=0.7, exit3=0.9)``."""
    named = {name.removeprefix("exit").replace("_", "."): t for name, t in thresholds.items()}
    return {exit: ExitSetting(HEADS[EXITS.index(exit)], t) for exit, t in named.items()}


def make_inputs(count: int, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Random images of both sizes; they have nothing to do with each other, which nobody notices."""
    small = make_images(count, seed + 10_000)[:, :, :SMALL_EDGE, :SMALL_EDGE]
    return {"image": make_images(count, seed), "saver0_image": np.ascontiguousarray(small)}


def all_heads(inputs: dict[str, NDArray[np.float32]]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits (N, 6, classes) and confidences (N, 6) of every head on every sample."""
    small = np.maximum(np.einsum("oi,nihw->nohw", WEIGHTS["small_conv"][:, :, 0, 0], inputs["saver0_image"]), 0)
    pooled = small.mean(axis=(2, 3))
    logits = [pooled @ WEIGHTS["small_linear0"].T, pooled @ WEIGHTS["small_linear1"].T]
    logits.append(inputs["image"].mean(axis=(2, 3)) @ WEIGHTS["second_linear"].T)
    logits = [one[:, ORDER] for one in logits]
    confidences = []
    for one in logits:
        exponentials = np.exp(one.astype(np.float64) - one.max(axis=1, keepdims=True))
        confidences.append(exponentials.max(axis=1) / exponentials.sum(axis=1))
    of_base = bundles.all_heads(inputs["image"])
    own = np.stack(logits, axis=1), np.stack(confidences, axis=1)
    return tuple(np.concatenate(pair, axis=1).astype(np.float32) for pair in zip(own, of_base, strict=True))  # type: ignore[return-value]


def expected(inputs: dict[str, NDArray[np.float32]], configuration: Configuration) -> Answer:
    """Every sample takes the first head that is on and surer than its threshold."""
    logits, confidences = all_heads(inputs)
    exit = (confidences > _thresholds(configuration)).argmax(axis=1)
    rows = np.arange(len(logits))
    taken = logits[rows, exit]
    return Answer(taken, taken.argmax(axis=1), confidences[rows, exit], exit)


def near_threshold(inputs: dict[str, NDArray[np.float32]], configuration: Configuration) -> bool:
    """Whether a rounding error could change an exit."""
    return bool((np.abs(all_heads(inputs)[1] - _thresholds(configuration)) < 1e-5).any())


def _thresholds(configuration: Configuration) -> NDArray[np.float32]:
    settings = (configuration.exits.get(id) for id in EXITS[:-1])
    return np.array([*(np.inf if s is None else s.threshold for s in settings), -np.inf], np.float32)


def make_cascade(folder: Path, add_heads: Callable[[Joined], Joined] | None = None) -> Path:
    """Write ``cascade.dyce``, by way of the bundles of its models.

    Args:
        add_heads: adds heads that read what savers leave.
    """
    base = with_vectors(make_bundle(folder / "base.dyce"))
    savers = [make_small(folder / "small.dyce"), make_second(folder / "second.dyce")]
    mapping = {str(own): of_base for of_base, own in enumerate(ORDER)}
    path = folder / "cascade.dyce"
    opened = [open_bundle(path) for path in savers]
    parts, progress = Parts.of(open_bundle(base), opened, mapping), Progress()
    with staged(path, force=False) as staging:
        joined = join(parts, staging, val=None, progress=progress, expose=add_heads is not None)
        made = choose_and_verify(parts, add_heads(joined) if add_heads else joined, val=None, progress=progress)
        seal(staging, made.manifest, made.configurations)
    return path


def make_small(path: Path) -> Path:
    """The first saver: a convolution, an exit, a classifier."""
    image = TensorSpec("image", "float32", ("batch", CHANNELS, SMALL_EDGE, SMALL_EDGE), "input")
    seam = TensorSpec("exit_02", "float32", ("batch", 3, SMALL_EDGE, SMALL_EDGE))
    convolve = [
        helper.make_node("Conv", ["image", "small_conv"], ["convolved"]),
        helper.make_node("Relu", ["convolved"], ["exit_02"]),
    ]
    macs, ends = SMALL_EDGE**2 * WEIGHTS["small_conv"].size, 3 * CLASSES
    covers = ("segment_00", "segment_01")
    pieces = [
        Piece("segment_00", "segment", "segments/segment_00.onnx", ("image",), ("exit_02",), macs),
        Piece("segment_01", "segment", "segments/segment_01.onnx", ("exit_02",), ANSWER, ends),
        Piece("full", "span", "spans/full.onnx", ("image",), ANSWER, macs + ends, covers=covers),
        Piece("exit_02_linear", "head", "heads/exit_02_linear.onnx", ("exit_02",), ANSWER, ends),
    ]
    final = _decision("exit_02", "small_linear1")
    graphs = [convolve, final, convolve + final, _decision("exit_02", "small_linear0")]
    exits = (
        Exit("2", "blocks.1", (Head(HEAD, "exit_02_linear", True, 1.0),), 2),
        Exit(FINAL, "classifier", (Head(BUILTIN, "segment_01", True, 1.0),)),
    )
    program = (
        Feed("image"),
        Run("segment_00"),
        Run("exit_02_linear"),
        Leave("2", HEAD),
        Run("segment_01"),
        Leave(FINAL, BUILTIN, always=True),
    )
    return _finished(path, "small", (image, seam), exits, pieces, graphs, program)


def make_second(path: Path) -> Path:
    """The second saver: a classifier alone, in one piece."""
    # Said to be dearer than the first saver, or it would run before it.
    piece = Piece("segment_00", "segment", "segments/segment_00.onnx", ("image",), ANSWER, 60)
    exits = (Exit(FINAL, "classifier", (Head(BUILTIN, "segment_00", True, 1.0),)),)
    program = (Feed("image"), Run("segment_00"), Leave(FINAL, BUILTIN, always=True))
    graphs = [_decision("image", "second_linear")]
    return _finished(path, "second", (bundles.IMAGE,), exits, [piece], graphs, program)


def _finished(
    path: Path,
    name: str,
    specs: tuple[TensorSpec, ...],
    exits: tuple[Exit, ...],
    pieces: list[Piece],
    graphs: list[list[onnx.NodeProto]],
    program: tuple[Operation, ...],
) -> Path:
    tensors = {spec.name: spec for spec in (*specs, *ANSWERS)}
    for piece, nodes in zip(pieces, graphs, strict=True):
        bundles.write_piece(path, piece, tensors, nodes, _CONSTANTS)
    edge = int(specs[0].shape[-1])
    classes, macs = CLASSES, sum(piece.macs for piece in pieces if piece.role == "segment")
    model = Model(name, f"module tests.cascades:{name}", "module", classes, macs, 0)
    half = (0.5,) * CHANNELS
    way = Preprocessing(edge, (edge, edge), "bilinear", half, half)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        requires=(),
        producer={},
        networks=(Network(FINAL, model, (Input("image", way),), tuple(exit.id for exit in exits)),),
        tensors=tuple(tensors.values()),
        pieces=tuple(pieces),
        exits=exits,
        program=program,
        heads="trained",
        files={},
    )
    write_document(manifest, path / bundle.MANIFEST)
    write_document(Configurations(named={FULL: Entry({})}), path / bundle.CONFIGURATIONS)
    inputs = make_inputs(8)
    images = inputs["image" if edge == EDGE else "saver0_image"]
    # Of these only the images are looked at when bundles are put together.
    nothing = np.zeros(8, np.float32)
    scores = {(exit.id, head.type): nothing for exit in exits for head in exit.heads}
    vectors = Vectors({"image": images}, np.empty((8, CLASSES), np.float32), scores, nothing[: len(exits) - 1])
    write_vectors(vectors, bundle.Bundle(path, manifest, Configurations()))
    finish(path)
    return path


def _decision(source: str, weight: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("ReduceMean", [source, "spatial_axes"], ["pooled"], keepdims=0),
        helper.make_node("Gemm", ["pooled", weight], ["logits"], transB=1),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
        helper.make_node("ReduceMax", ["probabilities", "class_axis"], ["confidence"], keepdims=0),
        helper.make_node("ArgMax", ["logits"], ["label"], axis=-1, keepdims=0),
    ]
