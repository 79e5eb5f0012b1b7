"""A small bundle made without torch, what it must answer (computed by numpy), and a target that watches it run.

The weights and the pixels are multiples of powers of two, few enough that every sum is exact in float32: logits
agree to the last bit, whoever adds them up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from dyce_runtime.bundle import reader as bundle
from dyce_runtime.bundle.configuration import FULL, Configuration, Configurations, Entry, ExitSetting
from dyce_runtime.bundle.documents import write_document
from dyce_runtime.bundle.manifest import (
    ANSWER,
    BUILTIN,
    FINAL,
    SCHEMA_VERSION,
    UNCUT,
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
from dyce_runtime.execution.contracts import PieceSpec, TargetSpec
from dyce_runtime.execution.memory import TensorLife
from dyce_runtime.execution.plan import LeaveAt, Step
from dyce_runtime.execution.routing import run_step
from dyce_runtime.program.operations import Feed, Leave, Operation, Run
from dyce_targets.cpu.onnxruntime_cpu import OnnxRuntimeCpu

CHANNELS, EDGE, CLASSES, WIDTH = 3, 4, 5, 4
HEAD = "linear"
TEMPERATURES = (0.5, 0.25, 0.25)

_random = np.random.default_rng(193)
WEIGHTS = {f"conv{k}": _random.integers(-2, 3, (WIDTH, WIDTH if k else CHANNELS, 1, 1)) / 2 for k in range(3)}
WEIGHTS |= {f"linear{k}": _random.integers(-2, 3, (CLASSES, WIDTH)) * 1.0 for k in range(3)}
WEIGHTS = {name: weight.astype(np.float32) for name, weight in WEIGHTS.items()}


def _between(edge: int) -> list[TensorSpec]:
    """The image and the two seams."""
    seams = (TensorSpec(f"seam_{id}", "float32", ("batch", WIDTH, edge, edge)) for id in ("3", "7"))
    return [TensorSpec("image", "float32", ("batch", CHANNELS, edge, edge), "input"), *seams]


SEAMS = _between(EDGE)
IMAGE = SEAMS[0]
ANSWERS = tuple(
    TensorSpec(name, dtype, ("batch", *rest), "answer")
    for name, dtype, rest in zip(ANSWER, ("float32", "float32", "int64"), ((CLASSES,), (), ()), strict=True)
)


def on(**thresholds: float) -> dict[str, ExitSetting]:
    """Exits that are on: ``on(exit3=0.5)``."""
    return {name.removeprefix("exit"): ExitSetting(HEAD, threshold) for name, threshold in thresholds.items()}


# "accurate" skips an exit, so that the span over two segments is used.
NAMED = {FULL: {}, "accurate": on(exit7=0.95), "balanced": on(exit3=0.7, exit7=0.8), "fast": on(exit3=0.5, exit7=0.5)}


def make_images(count: int, seed: int = 0, edge: int = EDGE) -> NDArray[np.float32]:
    """Random inputs, faint ones and bright ones, about which the heads are unsure and sure."""
    random = np.random.default_rng(seed)
    brightness = 2.0 ** random.integers(-2, 3, (count, 1, 1, 1))
    return (random.integers(-8, 9, (count, CHANNELS, edge, edge)) / 8 * brightness).astype(np.float32)


# --- what the bundle must answer -------------------------------------------------------------------------------------


class Answer(NamedTuple):
    """As in ``Result``."""

    logits: NDArray[np.float32]
    label: NDArray[np.int64]
    confidence: NDArray[np.float32]
    exit: NDArray[np.int64]


def all_heads(images: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits (N, 3, classes) and confidences (N, 3) of every head on every sample."""
    logits, confidences, live = [], [], images
    for k, temperature in enumerate(TEMPERATURES):
        live = np.maximum(np.einsum("oi,nihw->nohw", WEIGHTS[f"conv{k}"][:, :, 0, 0], live), 0)
        logits.append(live.mean(axis=(2, 3)) @ WEIGHTS[f"linear{k}"].T)
        scaled = logits[-1].astype(np.float64) / temperature
        exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        confidences.append(exponentials.max(axis=1) / exponentials.sum(axis=1))
    return np.stack(logits, axis=1), np.stack(confidences, axis=1).astype(np.float32)


def expected(images: NDArray[np.float32], configuration: Configuration) -> Answer:
    """Every sample takes the first head that is on and surer than its threshold."""
    logits, confidences = all_heads(images)
    exit = (confidences > _thresholds(configuration)).argmax(axis=1)
    rows = np.arange(len(images))
    taken = logits[rows, exit]
    return Answer(taken, taken.argmax(axis=1), confidences[rows, exit], exit)


def near_threshold(images: NDArray[np.float32], configuration: Configuration) -> bool:
    """Whether a rounding error could change an exit."""
    return bool((np.abs(all_heads(images)[1] - _thresholds(configuration)) < 1e-5).any())


def _thresholds(configuration: Configuration) -> NDArray[np.float32]:
    by_exit = [configuration.exits[id].threshold if id in configuration.exits else np.inf for id in ("3", "7")]
    return np.array([*by_exit, -np.inf], np.float32)


# --- the bundle ------------------------------------------------------------------------------------------------------


def make_bundle(path: Path, heads: Literal["trained", "untrained"] = "trained", edge: int = EDGE) -> Path:
    """Write a bundle with the exits 3 and 7, for images of ``edge`` by ``edge`` pixels."""
    pieces, seams = [], _between(edge)
    tensors = {spec.name: spec for spec in (*seams, *ANSWERS)}
    for id, first, last in [("segment_00", 0, 0), ("segment_01", 1, 1), ("segment_02", 2, 2),
                            ("span_00_01", 0, 1), (UNCUT, 0, 2)]:  # fmt: skip
        final = last == 2
        role: Literal["segment", "span"] = "segment" if first == last else "span"
        nodes = [node for k in range(first, last + 1) for node in _convolution(k)] + (_decision(2) if final else [])
        writes = ANSWER if final else (seams[last + 1].name,)
        macs = sum(_macs(k) for k in range(first, last + 1))
        covers = () if first == last else tuple(f"segment_{k:02d}" for k in range(first, last + 1))
        piece = Piece(id, role, f"{role}s/{id}.onnx", (seams[first].name,), writes, macs, covers=covers)
        pieces.append(piece)
        write_piece(path, piece, tensors, nodes, _CONSTANTS)
    exits: list[Exit] = []
    program: list[Operation] = [Feed("image")]
    for k, point in enumerate((3, 7)):
        id = f"exit_{point:02d}_{HEAD}"
        pieces.append(Piece(id, "head", f"heads/{id}.onnx", (seams[k + 1].name,), ANSWER, WIDTH * CLASSES))
        write_piece(path, pieces[-1], tensors, _decision(k), _CONSTANTS)
        head = Head(HEAD, id, heads == "trained", TEMPERATURES[k])
        exits.append(Exit(str(point), f"blocks.{k}", (head,), point))
        program += [Run(f"segment_{k:02d}"), Run(id), Leave(str(point), HEAD)]
    exits.append(Exit(FINAL, "classifier", (Head(BUILTIN, "segment_02", True, TEMPERATURES[2]),)))
    program += [Run("segment_02"), Leave(FINAL, BUILTIN, always=True)]
    model = Model(
        name="tiny",
        source="module tests.bundles",
        weights="module",
        num_classes=CLASSES,
        macs=sum(map(_macs, range(3))),
        parameters=sum(weight.size for weight in WEIGHTS.values()),
    )
    way = Preprocessing(edge, (edge, edge), "bilinear", (0.5,) * CHANNELS, (0.5,) * CHANNELS)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        requires=(),
        producer={},
        networks=(Network(FINAL, model, (Input("image", way),), tuple(exit.id for exit in exits)),),
        tensors=tuple(tensors.values()),
        pieces=tuple(pieces),
        exits=tuple(exits),
        program=tuple(program),
        heads=heads,
        files={name: bundle.sha256_of(path / name) for name in bundle.files_of(path)},
    )
    named = {name: Entry(exits=exits) for name, exits in NAMED.items()}
    write_document(manifest, path / bundle.MANIFEST)
    write_document(Configurations(named=named, front=tuple(named.values())), path / bundle.CONFIGURATIONS)
    return path


def finish(path: Path, **changes: Any) -> None:
    """List all files in the manifest, with further changes to it."""
    manifest = msgspec.json.decode((path / bundle.MANIFEST).read_bytes(), type=Manifest)
    files = {name: bundle.sha256_of(path / name) for name in bundle.files_of(path)}
    write_document(msgspec.structs.replace(manifest, files=files, **changes), path / bundle.MANIFEST)


def with_vectors(path: Path, **changes: Any) -> Path:
    """Add test vectors to a bundle, as numpy computes them."""
    images = make_images(8)
    logits, scores = all_heads(images)
    (path / bundle.TEST_VECTORS).parent.mkdir()
    probe = np.array([0.6, 0.7], np.float32)
    np.savez(path / bundle.TEST_VECTORS, images=images, logits=logits[:, -1], scores=scores, probe=probe)
    finish(path, **changes)
    return path


def _macs(segment: int) -> int:
    return EDGE * EDGE * WEIGHTS[f"conv{segment}"].size + (WIDTH * CLASSES if segment == 2 else 0)


def _convolution(k: int) -> list[onnx.NodeProto]:
    output = SEAMS[k + 1].name if k < 2 else "features"
    return [
        helper.make_node("Conv", [SEAMS[k].name, f"conv{k}"], [f"convolved{k}"]),
        helper.make_node("Relu", [f"convolved{k}"], [output]),
    ]


def _decision(k: int) -> list[onnx.NodeProto]:
    source = SEAMS[k + 1].name if k < 2 else "features"
    return [
        helper.make_node("ReduceMean", [source, "spatial_axes"], ["pooled"], keepdims=0),
        helper.make_node("Gemm", ["pooled", f"linear{k}"], ["logits"], transB=1),
        helper.make_node("Div", ["logits", f"temperature{k}"], ["scaled"]),
        helper.make_node("Softmax", ["scaled"], ["probabilities"], axis=-1),
        helper.make_node("ReduceMax", ["probabilities", "class_axis"], ["confidence"], keepdims=0),
        helper.make_node("ArgMax", ["scaled"], ["label"], axis=-1, keepdims=0),
    ]


_CONSTANTS = {
    **WEIGHTS,
    **{f"temperature{k}": np.array(temperature, np.float32) for k, temperature in enumerate(TEMPERATURES)},
    "spatial_axes": np.array([2, 3], np.int64),
    "class_axis": np.array([-1], np.int64),
}


def write_piece(
    folder: Path,
    piece: Piece,
    tensors: Mapping[str, TensorSpec],
    nodes: Sequence[onnx.NodeProto],
    arrays: Mapping[str, NDArray[Any]],
) -> None:
    """Write a graph of these nodes, with those of the constants that they use."""

    def described(names: Sequence[str]) -> list[onnx.ValueInfoProto]:
        types = {"float32": onnx.TensorProto.FLOAT, "int64": onnx.TensorProto.INT64}
        specs = [tensors[name] for name in names]
        return [helper.make_tensor_value_info(t.name, types[t.dtype], t.shape) for t in specs]

    used = {name for node in nodes for name in node.input}
    constants = [numpy_helper.from_array(array, name) for name, array in arrays.items() if name in used]
    graph = helper.make_graph(nodes, piece.id, described(piece.reads), described(piece.writes), constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    (folder / piece.file).parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / piece.file)


# --- watching it run -------------------------------------------------------------------------------------------------


class Spy:
    """The CPU target and its device in one, with a list of what ran and a hook before every piece.

    Attributes:
        calls: (piece, samples) in the order of the calls.
        before: called with the id of a piece that is about to run.
    """

    name = "onnxruntime"
    spans = True
    engines = False

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.before: Callable[[str], object] = lambda piece: None
        self._device: Any = None

    def version(self) -> str:
        return OnnxRuntimeCpu().version()

    def best_batch(self, spec: TargetSpec, macs: int) -> int:
        return 64

    def open(self, pieces: Sequence[PieceSpec], tensors: Sequence[TensorLife], spec: TargetSpec) -> Spy:
        self._device = OnnxRuntimeCpu().open(pieces, tensors, spec)
        return self

    def context(self, rows: int) -> SpiedContext:
        return SpiedContext(self, self._device.context(rows))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)


class SpiedContext:
    """A context that tells the spy what runs."""

    def __init__(self, spy: Spy, context: Any) -> None:
        self._spy, self._context = spy, context

    def run(self, piece: str, rows: Any = None) -> None:
        self._spy.calls.append((piece, self._context.rows if rows is None else len(rows)))
        self._spy.before(piece)
        self._context.run(piece, rows)

    def run_until_exit(self, steps: Sequence[Step]) -> Any:
        leave, score = None, np.empty(1, np.float32)
        for step in steps:
            if isinstance(step, LeaveAt):
                leave, (score,) = step, self.read("confidence")
                if not 0 < score[0] <= step.threshold:
                    break
            else:
                run_step(self, step)  # type: ignore[arg-type]
        return leave, score

    def __enter__(self) -> SpiedContext:
        return self

    def __exit__(self, *error: object) -> None:
        self._context.__exit__(*error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


class Clock(dict[str, float]):
    """Seconds that each piece takes; a piece that is not named takes none.

    Attributes:
        now: seconds since the start.
    """

    now = 0.0

    def run(self, piece: str) -> None:
        self.pass_by(self.get(piece, 0.0))

    def pass_by(self, seconds: float) -> None:
        self.now += seconds
