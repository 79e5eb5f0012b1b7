"""``dyce compile`` as a user meets it. Where TensorRT-RTX is installed it really builds: that takes no GPU."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import gettempdir

import msgspec
import numpy as np
import onnx
import pytest
from onnx import helper

from dyce_export.cli.commands.compile import parse_target
from dyce_runtime import load, open_bundle
from dyce_runtime.bundle.cache import cache_folder, engine_folders
from dyce_runtime.bundle.configuration import Configurations, Entry
from dyce_runtime.bundle.documents import write_document
from dyce_runtime.bundle.reader import MANIFEST, sha256_of, write_configurations
from dyce_runtime.errors import BundleError, UsageError
from dyce_runtime.execution.contracts import TargetSpec
from dyce_targets.nvidia.products import RTX, TENSORRT
from tests.bundles import make_images, with_vectors
from tests.unit.cli.command import dyce_here

needs_rtx = pytest.mark.skipif(RTX.missing() is not None, reason=str(RTX.missing()))


def compile(bundle: Path, target: str, *more: str) -> dict:
    """The document of a run that went well."""
    done = dyce_here("compile", str(bundle), "--target", target, "--json", *more)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def built(document: dict) -> set[str]:
    return {piece["piece"] for piece in document["pieces"] if piece["built"]}


EVERY = {"segment_00", "segment_01", "segment_02", "exit_03_linear", "exit_07_linear", "full"}


@needs_rtx
def test_engines_are_built_once_and_again_where_something_changed(bundle_copy: Path):
    before = {path: path.read_bytes() for path in bundle_copy.rglob("*") if path.is_file()}
    first = compile(bundle_copy, "rtx:sm89,sm86")
    assert built(first) == EVERY
    folder = Path(first["folder"])
    assert folder == cache_folder(open_bundle(bundle_copy), "rtx")
    note = json.loads((folder / "full.json").read_text())["fingerprint"]
    assert (note["product"], note["devices"], note["max_batch"]) == ("rtx", ["sm86", "sm89"], 8)
    assert built(compile(bundle_copy, "rtx:sm86,sm89")) == set()
    (folder / "segment_01.engine").write_bytes(b"damaged")
    (folder / "full.json").write_text("{")
    (folder / "exit_03_linear.engine").unlink()
    assert built(compile(bundle_copy, "rtx:sm86,sm89")) == {"segment_01", "full", "exit_03_linear"}
    assert built(compile(bundle_copy, "rtx:sm120")) == EVERY
    assert built(compile(bundle_copy, "rtx:sm120", "--max-batch", "1")) == EVERY
    shown = " ".join(dyce_here("inspect", str(bundle_copy)).stdout.split())
    assert f"rtx {note['version']} sm120 1 6" in shown
    assert {path: path.read_bytes() for path in bundle_copy.rglob("*") if path.is_file()} == before


@needs_rtx
def test_engines_travel_in_a_copy_that_lists_and_hashes_them(bundle_copy: Path, tmp_path: Path):
    device = tmp_path / "device.dyce"
    document = compile(bundle_copy, "rtx:sm86", "-o", str(device))
    assert built(document) == EVERY
    assert (document["folder"], document["output"]) == (str(device / "engines/rtx"), str(device))
    bundle = open_bundle(device)
    assert {name for name in bundle.manifest.files if name.startswith("engines/")} == {
        f"engines/rtx/{piece}.{kind}" for piece in EVERY for kind in ("engine", "json")
    }
    assert engine_folders(bundle, "rtx") == (device / "engines/rtx", cache_folder(bundle, "rtx"))
    engine = device / "engines/rtx/full.engine"
    engine.write_bytes(engine.read_bytes()[:-1] + b"?")
    with pytest.raises(BundleError, match=r"full\.engine was changed"):
        open_bundle(device)


def test_engines_that_the_manifest_does_not_list_are_left_out(bundle_copy: Path):
    (bundle_copy / "engines/rtx").mkdir(parents=True)
    (bundle_copy / "engines/rtx/full.engine").write_bytes(b"from a stranger")
    bundle = open_bundle(bundle_copy)
    assert engine_folders(bundle, "rtx") == (cache_folder(bundle, "rtx"),)


def test_a_copy_for_a_device_has_what_runs_and_no_more(searchable: Path, tmp_path: Path):
    with_vectors(searchable)
    (searchable / "report.html").write_text("large")
    device = tmp_path / "device.dyce"
    document = compile(searchable, "onnxruntime", "-o", str(device), "--strip")
    assert document["bytes"] < document["bytes_before"]
    before, after = open_bundle(searchable), open_bundle(device)
    assert set(before.manifest.files) - set(after.manifest.files) == {"calibration/records.npz"}
    assert not (device / "report.html").exists()
    assert after.configurations.named == before.configurations.named
    images = make_images(20)
    with load(searchable, "onnxruntime", threads=1) as one, load(device, "onnxruntime", threads=1) as other:
        for name in before.configurations.named:
            one.use(name)
            other.use(name)
            np.testing.assert_array_equal(one(images).logits, other(images).logits)
    write_configurations(Configurations(named={"full": Entry({})}), searchable)
    compile(searchable, "onnxruntime", "-o", str(device), "--strip", "--force")
    assert [span.id for span in open_bundle(device).manifest.spans] == ["full"], "no configuration runs the others"
    shown = dyce_here("compile", str(searchable), "--target", "onnxruntime", "-o", str(tmp_path / "b.dyce"), "--strip")
    assert "b.dyce written: 0.0 MB; " in " ".join(shown.stdout.split())


def test_a_copy_needs_a_name_and_does_not_replace_another_one(bundle_copy: Path, tmp_path: Path):
    done = dyce_here("compile", str(bundle_copy), "--target", "onnxruntime", "--strip")
    assert (done.returncode, "Give -o DEVICE.dyce" in done.stderr) == (2, True)
    device = tmp_path / "device.dyce"
    compile(bundle_copy, "onnxruntime", "-o", str(device))
    done = dyce_here("compile", str(bundle_copy), "--target", "onnxruntime", "-o", str(device))
    assert (done.returncode, "already exists" in done.stderr) == (1, True)


def test_the_users_cache_is_found_without_a_home(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    bundle = open_bundle(tiny_bundle)
    assert cache_folder(bundle, "rtx") == tmp_path / "dyce-export" / bundle.fingerprint[:16] / "rtx"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder(bundle, "rtx").is_relative_to(tmp_path / "home/.cache")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # a user without a home
    assert cache_folder(bundle, "rtx").is_relative_to(gettempdir())


@needs_rtx
def test_an_operator_that_is_not_supported_is_named_and_the_bundle_still_runs(bundle_copy: Path, own_cache: Path):
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
    assert not list(own_cache.rglob("segment_01.engine"))


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
