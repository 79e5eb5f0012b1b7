"""Networks in a lower precision: what their pieces compute, and what crosses the seams between them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from dyce_export.cascade import export_source
from dyce_export.graph.joining import Network, assemble
from dyce_export.precision.cut import write_lowered
from dyce_export.precision.half import halver
from dyce_export.precision.integers import quantiser
from dyce_export.precision.trials import Convert
from dyce_export.sources.source import from_module
from dyce_runtime import Session, open_bundle
from dyce_runtime.bundle.configuration import FULL, Configurations, Entry
from dyce_runtime.bundle.manifest import ANSWER, Manifest
from dyce_runtime.bundle.reader import Bundle
from dyce_runtime.errors import VerificationError
from dyce_runtime.execution.contracts import TargetSpec
from dyce_runtime.execution.trace import head_answers
from tests.models import INPUT_SIZE, Branches, Convolutions, Folded, Tokens, build
from tests.unit.graph.test_pieces import LongSkip

MODELS = [Convolutions, Tokens, Branches, Folded, LongSkip]
# Relative to how far logits vary: 11 bits, and 8 (with a sign, 7), through a dozen layers.
CLOSE = {"float16": 0.01, "uint8": 0.12, "int8": 0.15}

Precision = Literal["float16", "int8", "uint8"]
PRECISIONS = ["float16", "int8", "uint8"]


@pytest.fixture(scope="module", params=MODELS, ids=lambda make: make.__name__)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """With untrained heads, which have confidences like others."""
    make: type[nn.Module] = request.param
    path = tmp_path_factory.mktemp("precision") / "float32.dyce"
    size = (3, 12, 12) if make is LongSkip else INPUT_SIZE
    export_source(from_module(build(make), input_size=size), ["1", "2", "3"], path)
    return open_bundle(path)


@pytest.fixture(scope="module")
def two_exits(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("two") / "float32.dyce"
    export_source(from_module(build(Convolutions), input_size=INPUT_SIZE), ["1", "2"], path)
    return open_bundle(path)


@pytest.fixture(scope="module")
def silent_block(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """One tensor of this network never varies."""
    model = build(Convolutions)
    for parameter in model.get_submodule("b2").parameters():
        parameter.data.zero_()
    path = tmp_path_factory.mktemp("silent") / "float32.dyce"
    export_source(from_module(model, input_size=INPUT_SIZE), ["1", "2"], path)
    return open_bundle(path)


def pixels(bundle: Bundle, count: int) -> np.ndarray:
    """Noise of several strengths and colours: networks with random weights hardly react to less."""
    shape = [int(edge) for edge in bundle.manifest.input.shape[1:]]
    random = np.random.default_rng(0)
    colour = random.normal(scale=2, size=(count, shape[0], 1, 1))
    return (random.normal(size=(count, *shape)) + colour).astype(np.float32)


def converter(bundle: Bundle, precision: Precision) -> tuple[Network, Convert]:
    network = assemble(bundle)
    return network, halver(network) if precision == "float16" else quantiser(
        network, {"image": pixels(bundle, 40)}, precision
    )


def heads(bundle: Bundle) -> list[str]:
    return [piece.id for piece in bundle.manifest.pieces if piece.role == "head"]


def answers(folder: Path, manifest: Manifest, images: np.ndarray) -> dict[str, np.ndarray]:
    """Logits of every head and of the uncut model, through the pieces."""
    only_full = Configurations(named={FULL: Entry(exits={})})
    with Session(Bundle(folder, manifest, only_full), "onnxruntime", TargetSpec()) as session:
        said = head_answers(session.device, manifest, {"image": images})
        found = {head.piece: said[exit.id, head.type].logits for exit in manifest.exits for head in exit.heads}
        found["uncut"] = session(images).logits
    return found


def largest(values: np.ndarray) -> float:
    return float(np.abs(values - values.mean(axis=0)).max())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_head_says_nearly_what_it_says_in_float32(bundle: Bundle, tmp_path: Path, precision: Precision) -> None:
    network, convert = converter(bundle, precision)
    manifest = write_lowered(network, convert(heads(bundle)), precision, tmp_path)
    for piece in manifest.pieces:
        onnx.checker.check_model(tmp_path / piece.file, full_check=True)
    images = pixels(bundle, 5)
    before, now = answers(bundle.path, bundle.manifest, images), answers(tmp_path, manifest, images)
    assert before.keys() == now.keys()
    for name, expected in before.items():
        assert np.abs(now[name] - expected).max() <= CLOSE[precision] * largest(expected), name
        assert np.abs(now[name] - expected).max() > 0, f"{name} is the same as in float32: nothing was lowered"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_weights_are_stored_in_it_and_seams_agree(bundle: Bundle, tmp_path: Path, precision: Precision) -> None:
    network, convert = converter(bundle, precision)
    manifest = write_lowered(network, convert(heads(bundle)), precision, tmp_path)
    stored = {"float16": TensorProto.FLOAT16, "int8": TensorProto.INT8, "uint8": TensorProto.INT8}[precision]
    crossing = set()
    for piece in manifest.pieces:
        graph = onnx.load(tmp_path / piece.file).graph
        large = [tensor for tensor in graph.initializer if len(tensor.dims) > 1]
        if piece.role == "head":
            assert all(tensor.data_type == TensorProto.FLOAT for tensor in large), "heads decide in float32"
        elif large:
            assert any(tensor.data_type == stored for tensor in large), piece.id
        declared = {spec.name: np.dtype(spec.dtype) for spec in manifest.specs((*piece.reads, *piece.writes))}
        for value in (*graph.input, *graph.output):
            kind = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            assert kind == declared[value.name], value.name
        crossing |= {spec.dtype for spec in manifest.specs(piece.writes) if spec.name not in ANSWER}
    assert manifest.input == bundle.manifest.input, "pictures stay float32"
    if precision == "float16":
        assert crossing <= {"float16", "float32"}
        assert "float16" in crossing


@pytest.mark.parametrize("precision", ["int8", "uint8"])
def test_integers_cross_a_seam_between_convolutions_and_are_made_once(
    two_exits: Bundle, tmp_path: Path, precision: Precision
) -> None:
    network, convert = converter(two_exits, precision)
    manifest = write_lowered(network, convert(heads(two_exits)), precision, tmp_path / "lowered")
    for piece in manifest.pieces:
        operators = [node.op_type for node in onnx.load(tmp_path / "lowered" / piece.file).graph.node]
        if piece.id in ("segment_00", "segment_01"):
            assert [spec.dtype for spec in manifest.specs(piece.writes)] == [precision]
            assert operators[-1] == "QuantizeLinear"
        if piece.reads[0] != "image":
            assert [spec.dtype for spec in manifest.specs(piece.reads)] == [precision]
            assert "QuantizeLinear" not in operators[:2]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_kept_segment_computes_what_it_did(bundle: Bundle, tmp_path: Path, precision: Precision) -> None:
    network, convert = converter(bundle, precision)
    manifest = write_lowered(network, convert([*heads(bundle), "segment_00"]), precision, tmp_path)
    of = {piece.id: onnx.load(tmp_path / piece.file).graph for piece in manifest.pieces}
    assert all(tensor.data_type != TensorProto.INT8 for tensor in of["segment_00"].initializer if len(tensor.dims) > 1)
    images = pixels(bundle, 3)
    exact = bundle.manifest.exits[0].heads[0].piece
    before, now = answers(bundle.path, bundle.manifest, images), answers(tmp_path, manifest, images)
    # What it returns may be rounded for the next segment, once.
    assert np.abs(now[exact] - before[exact]).max() <= 0.05 * largest(before[exact])
    last = manifest.exits[-1].heads[0].piece
    assert np.abs(now[last] - before[last]).max() <= CLOSE[precision] * largest(before[last])


def test_weights_beyond_float16_become_its_largest_number() -> None:
    weight = numpy_helper.from_array(np.full((1, 4), 1e6, np.float32), "weight")
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 4])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])
    node = helper.make_node("Mul", ["image", "weight"], ["logits"], name="scale")
    graph = helper.make_graph([node], "one", [image], [logits], [weight])
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]))
    halved = halver(Network(None, model, {}, ()))(())  # type: ignore[arg-type]
    stored = [value.const_value.numpy() for value in halved.graph.initializers.values() if value.const_value]
    assert [array.dtype for array in stored] == [np.float16]
    assert np.isfinite(stored[0]).all()
    assert halved.graph.outputs[0].name == "logits"
    assert halved.graph.outputs[0].dtype == ir.DataType.FLOAT


@pytest.mark.parametrize("precision", ["int8", "uint8"])
@pytest.mark.parametrize("first", [0, 1e-12, 1], ids=["blank first", "nearly blank first", "as they come"])
def test_ranges_do_not_depend_on_what_comes_first(
    silent_block: Bundle, tmp_path: Path, precision: Precision, first: float
) -> None:
    """Tensors that hardly vary in the first pictures, and one that never does."""
    bundle = silent_block
    shown, images = pixels(bundle, 40), pixels(bundle, 5)
    shown[:8] *= first
    network = assemble(bundle)
    manifest = write_lowered(
        network, quantiser(network, {"image": shown}, precision)(heads(bundle)), precision, tmp_path / "lowered"
    )
    now = answers(tmp_path / "lowered", manifest, images)
    for name, expected in answers(bundle.path, bundle.manifest, images).items():
        assert np.abs(now[name] - expected).max() <= CLOSE[precision] * largest(expected), name


@pytest.mark.parametrize("precision", ["int8", "uint8"])
def test_a_network_that_overflows_is_not_quantised(bundle: Bundle, precision: Precision) -> None:
    images = pixels(bundle, 4)
    images[2] = np.float32(3e38)
    with pytest.raises(VerificationError, match="on these pictures; expected less than"):
        quantiser(assemble(bundle), {"image": images}, precision)
