from __future__ import annotations

import re
import shutil
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torchvision.ops import DeformConv2d

from dyce_calibration.heads.temperature import softmax
from dyce_calibration.heads.training import make_mlp, untrained_heads
from dyce_export.graph import onnx_graphs
from dyce_export.graph.backbone import Backbone
from dyce_export.graph.exit_points import find_exit_points
from dyce_export.graph.onnx_graphs import append_decision, extract, mlp_head, save, to_onnx
from dyce_export.graph.pieces import (
    aliases,
    builtin_head,
    node_names,
    seam_specs,
    tensor_table,
    write_backbone,
    write_heads,
)
from dyce_runtime.bundle.manifest import ANSWER, Piece, TensorSpec
from dyce_runtime.errors import CaptureError
from tests.examples import few
from tests.models import (
    CLASSES,
    IMAGE,
    INPUT_SIZE,
    Branches,
    Convolutions,
    Folded,
    LateToken,
    ReadsAgain,
    SequenceFirst,
    build,
    captured,
    images,
)

LOGITS = TensorSpec("logits", "float32", ("batch", CLASSES))


def session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


class Cut:
    """A model as one ONNX graph, out of which the parts between any two exit points can be run or written."""

    def __init__(self, make: type[nn.Module], folder: Path) -> None:
        self.module, self.folder = build(make), folder
        self.program = captured(make)
        self.found = find_exit_points(self.program)
        self.backbone = Backbone(self.program, self.found.points)
        self.seams = [(IMAGE,), *(seam_specs(point) for point in self.found.points), (LOGITS,)]
        self.graph = to_onnx(self.program, node_names(self.found.points))
        self._sessions: dict[tuple[int, int], ort.InferenceSession] = {}

    def run(self, first: int, last: int, inputs: list[np.ndarray]) -> list[np.ndarray]:
        """From one seam to another; 0 is the image, the last one the logits."""
        if (first, last) not in self._sessions:
            path = self.folder / f"{first}_{last}.onnx"
            part = extract(self.graph, self.seams[first], self.seams[last], aliases(self.found.points))
            save(part, path, {})
            self._sessions[first, last] = session(path)
        feeds = {spec.name: value for spec, value in zip(self.seams[first], inputs, strict=True)}
        return self._sessions[first, last].run([spec.name for spec in self.seams[last]], feeds)

    @cached_property
    def written(self) -> Written:
        """The pieces on disk, with heads at all exit points."""
        return Written(self, self.folder / "written")


class Written:
    """Pieces on disk."""

    def __init__(self, cut: Cut, folder: Path) -> None:
        self.folder, self.backbone = folder, cut.backbone
        self.heads = untrained_heads(cut.backbone(images(8))[1], CLASSES, ["mlp2x16", "mlp1x1000"], seed=0)
        bodies = write_backbone(cut.graph, cut.backbone, INPUT_SIZE, CLASSES, cut.found.total_macs, 0.5, folder)
        final = builtin_head(bodies[-2].id, 0.5)
        heads, self.exits = write_heads(cut.backbone, self.heads, final, trained=False, folder=folder)
        self.tensors = {spec.name: spec for spec in tensor_table(cut.backbone.points, INPUT_SIZE, CLASSES)}
        self.pieces: list[Piece] = [*bodies, *heads]

    def piece(self, id: str) -> Piece:
        return next(piece for piece in self.pieces if piece.id == id)


@pytest.fixture(scope="module", params=[Convolutions, LateToken, Branches, Folded, ReadsAgain, SequenceFirst])
def cut(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Cut:
    return Cut(request.param, tmp_path_factory.mktemp("cut"))


@pytest.fixture
def written(cut: Cut) -> Written:
    return cut.written


@few(8)
@given(data=st.data(), batch=st.integers(1, 5), seed=st.integers(0, 2**32 - 1))
def test_any_chain_of_segments_computes_what_torch_computes(cut: Cut, data, batch, seed):
    last = len(cut.seams) - 1
    seams = data.draw(st.sets(st.integers(1, last - 1)))
    pixels = images(batch, seed=seed)
    with torch.inference_mode():
        expected = cut.module(pixels).numpy()
    live = [pixels.numpy()]
    for first, end in pairwise([0, *sorted(seams), last]):
        live = cut.run(first, end, live)
    np.testing.assert_allclose(live[0], expected, rtol=1e-4, atol=1e-5)


def test_the_uncut_graph_computes_what_torch_computes(cut: Cut):
    pixels = images(4)
    with torch.inference_mode():
        expected = cut.module(pixels).numpy()
    np.testing.assert_allclose(cut.run(0, len(cut.seams) - 1, [pixels.numpy()])[0], expected, rtol=1e-4, atol=1e-5)


def test_a_seam_carries_samples_not_rows(cut: Cut):
    for number in range(1, len(cut.seams) - 1):
        for spec, value in zip(cut.seams[number], cut.run(0, number, [images(3).numpy()]), strict=True):
            assert value.shape == (3, *spec.shape[1:])


def test_a_part_cannot_need_what_its_inputs_do_not_give(cut: Cut):
    if len(cut.seams[1]) == 1:
        with pytest.raises(CaptureError, match=f"after {cut.seams[2][0].name} still reads the image"):
            extract(cut.graph, cut.seams[2], cut.seams[1])
    else:
        with pytest.raises(CaptureError, match=f"after {cut.seams[1][-1].name} still reads the image"):
            extract(cut.graph, cut.seams[1][-1:], cut.seams[2], aliases(cut.found.points))


# --- the files -------------------------------------------------------------------------------------------------------


def described(values) -> list[tuple[str, str, tuple[int | str, ...]]]:
    types = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.INT64: "int64"}
    return [
        (
            value.name,
            types[value.type.tensor_type.elem_type],
            tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim),
        )
        for value in values
    ]


def test_every_piece_is_a_valid_graph_for_the_oldest_engine(written: Written):
    for piece in written.pieces:
        model = onnx.load(written.folder / piece.file)
        onnx.checker.check_model(model, full_check=True)
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
        assert model.ir_version == 10
        assert not model.functions


def test_every_piece_has_the_tensors_that_the_manifest_names(written: Written):
    for piece in written.pieces:
        graph = onnx.load(written.folder / piece.file).graph
        for values, names in ((graph.input, piece.reads), (graph.output, piece.writes)):
            specs = [written.tensors[name] for name in names]
            assert described(values) == [(spec.name, spec.dtype, spec.shape) for spec in specs]
            assert all(spec.shape[0] == "batch" for spec in specs)


def test_only_the_batch_axis_is_dynamic(written: Written):
    for piece in written.pieces:
        graph = onnx.load(written.folder / piece.file).graph
        symbols = {
            dim.dim_param
            for value in (*graph.input, *graph.output)
            for dim in value.type.tensor_type.shape.dim
            if dim.dim_param
        }
        assert symbols == {"batch"}


def test_pieces_carry_documented_metadata_only(written: Written):
    for piece in written.pieces:
        model = onnx.load(written.folder / piece.file)
        found = {entry.key: entry.value for entry in model.metadata_props}
        assert found["dyce.piece"] == piece.id
        assert all(key.startswith("dyce.") for key in found)
        assert model.producer_name == "dyce-export"
        nodes_and_values = (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output)
        assert not any(entry.metadata_props or entry.doc_string for entry in nodes_and_values)
        assert not model.graph.metadata_props


def test_no_path_of_this_machine_is_written_into_a_file(written: Written):
    for file in filter(Path.is_file, written.folder.rglob("*")):
        content = file.read_bytes()
        for trace in (b"site-packages", b".py", b"Traceback", str(Path.cwd()).encode(), str(Path.home()).encode()):
            assert trace not in content, f"{trace!r} in {file.name}"


def test_heads_see_what_they_see_in_torch(written: Written):
    pixels = images(5)
    _, activations = written.backbone.activations(pixels)
    pooled = written.backbone.pool(activations)
    for index, (of_exit, exit) in enumerate(zip(written.heads, written.exits, strict=False)):
        for head, entry in zip(of_exit, exit.heads, strict=True):
            piece = written.piece(entry.piece)
            feeds = {name: t.numpy() for name, t in zip(piece.reads, activations[index], strict=True)}
            logits, confidence, label = session(written.folder / piece.file).run(list(ANSWER), feeds)
            assert entry.type == head.type
            np.testing.assert_allclose(logits, head.logits(pooled[index]).numpy(), rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(confidence, softmax(logits, head.temperature).max(1), rtol=1e-5)
            np.testing.assert_array_equal(label, logits.argmax(1))


def test_work_of_the_segments_adds_up_to_the_work_of_the_uncut_model(written: Written):
    segments = [piece.macs for piece in written.pieces if piece.role == "segment"]
    uncut = next(piece for piece in written.pieces if piece.role == "span")
    assert sum(segments) == uncut.macs
    assert uncut.covers == tuple(piece.id for piece in written.pieces if piece.role == "segment")


def test_no_segment_behind_a_cut_reads_the_image(cut: Cut):
    for piece in cut.written.pieces:
        if piece.role == "segment" and piece.id != "segment_00":
            graph = onnx.load(cut.written.folder / piece.file).graph
            assert "image" not in {name for node in graph.node for name in node.input}


def test_large_weights_stand_in_a_file_beside_the_graph(cut: Cut, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(onnx_graphs, "EXTERNAL_DATA_BYTES", 2000)
    written = Written(cut, tmp_path / "written")
    assert written.piece("full").data == ("spans/full.onnx.data",)
    for piece in written.pieces:
        model = onnx.load(written.folder / piece.file, load_external_data=False)
        places = {e.value for tensor in model.graph.initializer for e in tensor.external_data if e.key == "location"}
        assert places == ({Path(piece.file).name + ".data"} if piece.data else set())
        assert all((written.folder / name).is_file() for name in piece.data)
    shutil.move(tmp_path / "written", tmp_path / "moved")
    pixels = images(3)
    logits = session(tmp_path / "moved/spans/full.onnx").run(["logits"], {"image": pixels.numpy()})[0]
    with torch.inference_mode():
        np.testing.assert_allclose(logits, cut.module(pixels).numpy(), rtol=1e-4, atol=1e-5)


# --- the decision ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.25, 3.5])
def test_the_decision_is_softmax_and_argmax_at_the_temperature(tmp_path: Path, temperature):
    vectors = TensorSpec("vectors", "float32", ("batch", 6))
    model = mlp_head([vectors], [()], [(np.eye(6, dtype=np.float32), np.zeros(6, np.float32))])
    append_decision(model, temperature)
    save(model, tmp_path / "decision.onnx", {})
    x = np.random.default_rng(0).normal(0, 5, (50, 6)).astype(np.float32)
    x[0] = 100, -100, 0, 0, 0, 0  # saturates
    x[1] = 2  # ties: the first class
    logits, confidence, label = session(tmp_path / "decision.onnx").run(list(ANSWER), {"vectors": x})
    np.testing.assert_array_equal(logits, x)
    np.testing.assert_allclose(confidence, softmax(x, temperature).max(1), rtol=1e-5)
    np.testing.assert_array_equal(label, x.argmax(1))
    assert (confidence.dtype, label.dtype) == (np.float32, np.int64)


@pytest.mark.parametrize("type", ["mlp1x1000", "mlp2x7", "mlp3x16"])
@pytest.mark.parametrize(
    ("shapes", "pooled"),
    [
        ([(8,)], [()]),
        ([(8, 4, 4)], [(2, 3)]),
        ([(9, 8)], [(1,)]),
        ([(3, 4, 4), (5, 2, 2)], [(2, 3), (2, 3)]),
        ([(7, 3), (5,)], [(1,), ()]),
    ],
    ids=["vector", "picture", "tokens", "two pictures", "tokens and vector"],
)
def test_a_head_equals_its_torch_module(tmp_path: Path, type, shapes, pooled):
    specs = [TensorSpec(f"x{i}", "float32", ("batch", *shape)) for i, shape in enumerate(shapes)]
    torch.manual_seed(0)
    mlp = make_mlp(type, 8, CLASSES)
    layers = [(m.weight.detach().numpy(), m.bias.detach().numpy()) for m in mlp if isinstance(m, nn.Linear)]
    save(mlp_head(specs, pooled, layers), tmp_path / "head.onnx", {})
    onnx.checker.check_model(tmp_path / "head.onnx", full_check=True)
    inputs = [torch.randn(3, *shape) for shape in shapes]
    with torch.inference_mode():
        means = [x.mean(axes) if axes else x for x, axes in zip(inputs, pooled, strict=True)]
        expected = mlp(torch.cat(means, 1)).numpy()
    feeds = {spec.name: x.numpy() for spec, x in zip(specs, inputs, strict=True)}
    np.testing.assert_allclose(session(tmp_path / "head.onnx").run(None, feeds)[0], expected, rtol=1e-4, atol=1e-6)


def test_an_operation_without_an_onnx_form_is_named():
    class Strange(Convolutions):
        def forward(self, x):
            return super().forward(x) + torch.special.bessel_j0(x.mean((1, 2, 3)))[:, None]

    program = captured(Strange)
    with pytest.raises(CaptureError, match=re.compile("cannot be written as ONNX.*bessel", re.DOTALL)) as caught:
        to_onnx(program, {})
    assert "Replace that operation" in caught.value.hint


class Selective(Convolutions):
    """Takes the middle of its logits away, for which ONNX has nothing."""

    def forward(self, x):
        y = super().forward(x)
        return y - y.median(dim=1, keepdim=True).values


class Deformed(Convolutions):
    """Uses an operation that came with opset 19."""

    def __init__(self):
        super().__init__()
        self.deform = DeformConv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return super().forward(self.deform(x, x.new_zeros(x.shape[0], 18, *x.shape[2:]) + x.mean()))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Selective, r"no ONNX form of aten.median.dim in the model itself \(Selective, test_onnx_graphs.py:\d+\)"),
        (
            Deformed,
            r"DeformConv in deform \(DeformConv2d, test_onnx_graphs.py:\d+\) came with opset 19; expected .* 18",
        ),
    ],
)
@pytest.mark.parametrize("at_an_exit", [False, True])
def test_an_operation_that_bundles_cannot_hold_is_named_with_its_module(make, words, at_an_exit):
    program = captured(make)
    node = next(node for node in program.graph.nodes if "median" in node.name or "deform_conv" in node.name)
    with pytest.raises(CaptureError, match=words):
        to_onnx(program, {node.name: "exit_01"} if at_an_exit else {})


def test_what_the_exporter_prints_does_not_reach_stdout(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    export = torch.onnx.export

    def talkative(*arguments, **options):
        print("[torch.onnx] Obtain model graph ...")
        return export(*arguments, **options)

    monkeypatch.setattr(torch.onnx, "export", talkative)
    to_onnx(captured(Convolutions), {})
    assert capsys.readouterr().out == ""
