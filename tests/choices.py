"""A small bundle in which samples take different ways, and what it must answer (computed by numpy).

The network is that of :mod:`tests.bundles` with a block between the exits 3 and 7, of which a gate chooses a way for
each sample: skip it, or run one of two branches. Another gate chooses inside the last segment whether to run a branch.
The answers do not depend on how a batch is split.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper

from dyce_runtime.bundle import reader as bundle
from dyce_runtime.bundle.configuration import FULL, Configuration, Configurations, Entry
from dyce_runtime.bundle.documents import write_document
from dyce_runtime.bundle.manifest import (
    ANSWER,
    BUILTIN,
    CHOOSE,
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
from dyce_runtime.program.operations import Case, Choose, Feed, Leave, Run
from tests import bundles
from tests.bundles import ANSWERS, CHANNELS, CLASSES, EDGE, HEAD, WIDTH, Answer

_random = np.random.default_rng(11)
WEIGHTS = {
    "narrow": _random.integers(-2, 3, (WIDTH, WIDTH, 1, 1)) / 2,
    "wide": _random.integers(-2, 3, (WIDTH, WIDTH, 1, 1)) / 2,
    "late_weight": _random.integers(-2, 3, (WIDTH, WIDTH, 1, 1)) / 2,
}
WEIGHTS = {name: weight.astype(np.float32) for name, weight in WEIGHTS.items()}
# How many of the samples of tests.bundles take each way is about the same.
FOLDERS = {"segment": "segments", "head": "heads", "gate": "gates", "branch": "branches"}
BLOCK_CUTS, LATE_CUTS = (0.25, 1.0), (0.75,)
_CONSTANTS = {**bundles._CONSTANTS, **WEIGHTS, "every_axis": np.array([1, 2, 3], np.int64)}
NAMED = {
    FULL: Configuration(FULL),
    "never skip": Configuration("never skip", gates={"block": 2, "late": 1}),
    "always skip": Configuration("always skip", gates={"block": 0, "late": 0}),
    "early": Configuration("early", bundles.on(exit3=0.6, exit7=0.7)),
    "narrow": Configuration("narrow", bundles.on(exit7=0.7), {"block": (-1.0, 100.0), "late": (0.5,)}),
}
_cuts = st.sampled_from([-1.0, 0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0])
configurations = st.builds(
    Configuration,
    st.just("drawn"),
    st.fixed_dictionaries({}, optional=dict.fromkeys(("exit3", "exit7"), st.floats(0.125, 1, width=32))).map(
        lambda named: bundles.on(**named)
    ),
    st.fixed_dictionaries(
        {},
        optional={
            "block": st.lists(_cuts, min_size=2, max_size=2, unique=True).map(sorted).map(tuple) | st.integers(0, 2),
            "late": st.tuples(_cuts) | st.integers(0, 1),
        },
    ),
)


def _convolve(name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
    weight = {**bundles.WEIGHTS, **WEIGHTS}[name][:, :, 0, 0]
    return np.maximum(np.einsum("oi,nihw->nohw", weight, values), 0).astype(np.float32)


def _head(k: int, values: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits and confidences."""
    logits = values.mean(axis=(2, 3)) @ bundles.WEIGHTS[f"linear{k}"].T
    scaled = logits.astype(np.float64) / bundles.TEMPERATURES[k]
    exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return logits.astype(np.float32), (exponentials.max(axis=1) / exponentials.sum(axis=1)).astype(np.float32)


def _taken(values: NDArray[np.float32], setting: tuple[float, ...] | int) -> NDArray[np.int_]:
    """The case of each sample, by the mean of what it has at a gate."""
    if isinstance(setting, int):
        return np.full(len(values), setting)
    mean = values.mean(axis=(1, 2, 3))
    return np.array([sum(float(one) > np.float32(cut) for cut in setting) for one in mean])


def all_heads(
    images: NDArray[np.float32], configuration: Configuration
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits (N, 3, classes) and confidences (N, 3) of every head."""
    first = _convolve("conv0", images)
    taken = _taken(first, configuration.gates.get("block", BLOCK_CUTS))
    ways = np.stack([first, first + _convolve("narrow", first), first + _convolve("wide", first)])
    second = _convolve("conv1", ways[taken, np.arange(len(images))])
    late = _taken(second, configuration.gates.get("late", LATE_CUTS))
    third = np.stack([second, second + _convolve("late_weight", second)])[late, np.arange(len(images))]
    found = [_head(0, first), _head(1, second), _head(2, _convolve("conv2", third))]
    return np.stack([logits for logits, _ in found], 1), np.stack([confidence for _, confidence in found], 1)


def expected(images: NDArray[np.float32], configuration: Configuration) -> Answer:
    """Every sample takes its ways, and the first head that is on and surer than its threshold."""
    logits, confidences = all_heads(images, configuration)
    exit = (confidences > bundles._thresholds(configuration)).argmax(axis=1)
    rows = np.arange(len(images))
    taken = logits[rows, exit]
    return Answer(taken, taken.argmax(axis=1), confidences[rows, exit], exit)


def near_threshold(images: NDArray[np.float32], configuration: Configuration) -> bool:
    """Whether a rounding error could change an exit."""
    confidences = all_heads(images, configuration)[1]
    return bool((np.abs(confidences - bundles._thresholds(configuration)) < 1e-5).any())


def make_choices(path: Path) -> Path:
    """Write the bundle."""
    spatial = ("batch", WIDTH, EDGE, EDGE)
    names = ("seam_3", "block", "seam_7", "late")
    tensors = {spec.name: spec for spec in (bundles.IMAGE, *(TensorSpec(name, "float32", spatial) for name in names))}
    tensors |= {f"{name}_value": TensorSpec(f"{name}_value", "float32", ("batch",)) for name in ("block", "late")}
    tensors |= {spec.name: spec for spec in ANSWERS}
    work = EDGE * EDGE * WIDTH * WIDTH

    def convolution(source: str, weight: str, to: str) -> list:
        return [
            helper.make_node("Conv", [source, weight], ["convolved"]),
            helper.make_node("Relu", ["convolved"], [to]),
        ]

    def branch(source: str, weight: str, to: str) -> list:
        return [*convolution(source, weight, "branch"), helper.make_node("Add", [source, "branch"], [to])]

    def gate(source: str, to: str) -> list:
        return [helper.make_node("ReduceMean", [source, "every_axis"], [to], keepdims=0)]

    graphs = {
        "segment_00": ("segment", ("image",), ("seam_3",), convolution("image", "conv0", "seam_3")),
        "exit_03_linear": ("head", ("seam_3",), ANSWER, bundles._decision(0)),
        "block_gate": ("gate", ("seam_3",), ("block_value",), gate("seam_3", "block_value")),
        "block_narrow": ("branch", ("seam_3",), ("block",), branch("seam_3", "narrow", "block")),
        "block_wide": ("branch", ("seam_3",), ("block",), branch("seam_3", "wide", "block")),
        "segment_01": ("segment", ("block",), ("seam_7",), convolution("block", "conv1", "seam_7")),
        "exit_07_linear": ("head", ("seam_7",), ANSWER, bundles._decision(1)),
        "late_gate": ("gate", ("seam_7",), ("late_value",), gate("seam_7", "late_value")),
        "late_branch": ("branch", ("seam_7",), ("late",), branch("seam_7", "late_weight", "late")),
        "segment_02": (
            "segment",
            ("late",),
            ANSWER,
            [*convolution("late", "conv2", "features"), *bundles._decision(2)],
        ),
    }
    pieces = []
    for id, (role, reads, writes, nodes) in graphs.items():
        piece = Piece(id, role, f"{FOLDERS[role]}/{id}.onnx", reads, writes, work)  # type: ignore[arg-type]
        bundles.write_piece(path, piece, tensors, nodes, _CONSTANTS)
        pieces.append(piece)
    exits = (
        *(Exit(str(p), f"blocks.{p}", (Head(HEAD, f"exit_{p:02d}_linear", True, 0.5),), p) for p in (3, 7)),
        Exit(FINAL, "classifier", (Head(BUILTIN, "segment_02", True, 0.25),)),
    )
    skip = Case(copies={"block": "seam_3"})
    program = (
        Feed("image"),
        Run("segment_00"),
        Run("exit_03_linear"),
        Leave("3", HEAD),
        Run("block_gate"),
        Choose("block", "block_value", (skip, Case("block_narrow"), Case("block_wide")), BLOCK_CUTS),
        Run("segment_01"),
        Run("exit_07_linear"),
        Leave("7", HEAD),
        Run("late_gate"),
        Choose("late", "late_value", (Case(copies={"late": "seam_7"}), Case("late_branch")), LATE_CUTS),
        Run("segment_02"),
        Leave(FINAL, BUILTIN, always=True),
    )
    model = Model("choices", "module tests.choices", "module", CLASSES, 5 * work, 0)
    way = Preprocessing(EDGE, (EDGE, EDGE), "bilinear", (0.5,) * CHANNELS, (0.5,) * CHANNELS)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        requires=(CHOOSE,),
        producer={},
        networks=(Network(FINAL, model, (Input("image", way),), tuple(exit.id for exit in exits)),),
        tensors=tuple(tensors.values()),
        pieces=tuple(pieces),
        exits=exits,
        program=program,
        heads="trained",
        files={name: bundle.sha256_of(path / name) for name in bundle.files_of(path)},
    )
    named = {name: Entry(exits=one.exits, gates=one.gates) for name, one in NAMED.items()}
    write_document(manifest, path / bundle.MANIFEST)
    write_document(Configurations(named=named), path / bundle.CONFIGURATIONS)
    return path
