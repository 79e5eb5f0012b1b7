"""``dyce compile`` as a user meets it. Where TensorRT-RTX is installed it really builds: that takes no GPU."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import gettempdir

import msgspec
import onnx
import pytest
from onnx import helper

from dyce_export.cli.commands.compile import parse_target
from dyce_runtime import load, open_bundle
from dyce_runtime.bundle.cache import engine_folder
from dyce_runtime.bundle.documents import write_document
from dyce_runtime.bundle.reader import MANIFEST, sha256_of
from dyce_runtime.errors import UsageError
from dyce_runtime.execution.contracts import TargetSpec
from dyce_targets.nvidia.products import RTX, TENSORRT
from tests.unit.cli.command import dyce_here

needs_rtx = pytest.mark.skipif(RTX.missing() is not None, reason=str(RTX.missing()))


def compile(bundle: Path, target: str, *more: str) -> dict:
    """The document of a run that went well."""
    done = dyce_here("compile", str(bundle), "--target", target, "--json", *more)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def built(document: dict) -> set[str]:
    return {piece["piece"] for piece in document["pieces"] if piece["built"]}


@needs_rtx
def test_engines_are_built_once_and_again_where_something_changed(bundle_copy: Path):
    every = {"segment_00", "segment_01", "segment_02", "exit_03_linear", "exit_07_linear", "full"}
    before = open_bundle(bundle_copy).fingerprint
    first = compile(bundle_copy, "rtx:sm89,sm86")
    assert built(first) == every
    assert Path(first["folder"]) == bundle_copy / "engines/rtx"
    note = json.loads((bundle_copy / "engines/rtx/full.json").read_text())["fingerprint"]
    assert (note["product"], note["devices"], note["max_batch"]) == ("rtx", ["sm86", "sm89"], 8)
    assert built(compile(bundle_copy, "rtx:sm86,sm89")) == set()
    (bundle_copy / "engines/rtx/segment_01.engine").write_bytes(b"damaged")
    (bundle_copy / "engines/rtx/full.json").write_text("{")
    (bundle_copy / "engines/rtx/exit_03_linear.engine").unlink()
    assert built(compile(bundle_copy, "rtx:sm86,sm89")) == {"segment_01", "full", "exit_03_linear"}
    assert built(compile(bundle_copy, "rtx:sm120")) == every
    assert built(compile(bundle_copy, "rtx:sm120", "--max-batch", "1")) == every
    shown = " ".join(dyce_here("inspect", str(bundle_copy)).stdout.split())
    assert f"rtx {note['version']} sm120 1 6" in shown
    # Engines are no part of what the manifest describes.
    assert open_bundle(bundle_copy).fingerprint == before
    with load(bundle_copy, "onnxruntime"):
        pass


def test_a_bundle_that_cannot_be_written_has_its_engines_in_the_users_cache(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    bundle = open_bundle(tiny_bundle)
    assert engine_folder(bundle, "rtx") == tiny_bundle / "engines/rtx"
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert engine_folder(bundle, "rtx") == tmp_path / "dyce-export" / bundle.fingerprint[:16] / "rtx"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert engine_folder(bundle, "rtx").is_relative_to(tmp_path / "home/.cache")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # a user without a home
    assert engine_folder(bundle, "rtx").is_relative_to(gettempdir())


@needs_rtx
def test_an_operator_that_is_not_supported_is_named_and_the_bundle_still_runs(bundle_copy: Path):
    file = bundle_copy / "segments/segment_01.onnx"
    graph = onnx.load(file)
    (relu,) = (node for node in graph.graph.node if node.op_type == "Relu")
    unique = helper.make_node("Unique", [relu.output[0]], ["values"], name="unusual")
    graph.graph.node.append(unique)
    graph.graph.output.append(helper.make_tensor_value_info("values", onnx.TensorProto.FLOAT, None))
    onnx.save(graph, file)
    manifest = open_bundle(bundle_copy, check_hashes=False).manifest
    files = {**manifest.files, "segments/segment_01.onnx": sha256_of(file)}
    write_document(msgspec.structs.replace(manifest, files=files), bundle_copy / MANIFEST)
    done = dyce_here("compile", str(bundle_copy), "--target", "rtx:sm86")
    assert done.returncode == 1
    assert f"{file} does not load in TensorRT-RTX" in done.stderr
    assert "the operator Unique (node unusual) is not supported" in done.stderr
    assert "still runs on its other targets" in done.stderr
    assert not (bundle_copy / "engines/rtx/segment_01.engine").exists()


@needs_rtx
def test_gpus_that_the_product_does_not_build_for_are_named(bundle_copy: Path):
    done = dyce_here("compile", str(bundle_copy), "--target", "rtx:sm99,sm86")
    assert done.returncode == 4
    assert "does not build for sm99; it builds for sm75, sm80, sm86" in done.stderr
    assert not (bundle_copy / "engines").exists()


@pytest.mark.skipif(TENSORRT.missing() is None, reason="TensorRT is installed here")
def test_a_product_that_is_missing_says_how_to_get_it(bundle_copy: Path):
    done = dyce_here("compile", str(bundle_copy), "--target", "tensorrt")
    assert done.returncode == 4
    assert "TensorRT is not installed; on Jetson it comes with JetPack" in done.stderr


def test_where_onnx_is_read_as_it_is_there_is_nothing_to_build(bundle_copy: Path):
    assert compile(bundle_copy, "onnxruntime") == {
        "schema_version": "1.0",
        "command": "compile",
        "status": "ok",
        "bundle": str(bundle_copy),
        "target": "onnxruntime",
        "folder": None,
        "pieces": [],
    }
    assert "there is nothing to build" in dyce_here("compile", str(bundle_copy), "--target", "onnxruntime").stdout
    assert not (bundle_copy / "engines").exists()


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("rtx", ("rtx", ())),
        ("rtx:sm86", ("rtx", ("sm86",))),
        ("rtx:SM89, sm86,sm89", ("rtx", ("sm86", "sm89"))),
        ("rtx:sm120,sm89", ("rtx", ("sm120", "sm89"))),
    ],
)
def test_a_target_is_a_name_and_perhaps_gpus(text: str, parsed: tuple[str, tuple[str, ...]]):
    name, spec = parse_target(text)
    assert (name, spec.devices) == parsed
    assert spec.max_batch is None


def test_a_device_says_which_target_and_what_it_builds():
    assert parse_target("rtx-40") == ("rtx", TargetSpec(devices=("sm89",), max_batch=32))
    name, spec = parse_target("jetson-orin-nano")
    assert (name, spec.devices, spec.max_batch, spec.workspace_mib) == ("tensorrt", (), 4, 512)
    assert parse_target("x86-cpu")[0] == "openvino"


@pytest.mark.parametrize("text", ["rtx:", "rtx:ampere", "rtx:sm", "rtx:sm86;sm89", "rtx:86"])
def test_anything_else_behind_the_colon_is_refused(text: str):
    with pytest.raises(UsageError, match="expected compute capabilities such as sm86"):
        parse_target(text)
