"""``dyce lower`` and ``--precision``: bundles of the same network in other precisions, with everything done again."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dyce_calibration.promises.agreement import exits_taken
from dyce_calibration.records import Records
from dyce_calibration.search.run import Search
from dyce_export.cascade import export_source
from dyce_export.options import Options
from dyce_export.precision.trials import Limits
from dyce_export.progress import Progress
from dyce_export.writing.rewrite import rewrite, with_precisions
from dyce_runtime import load, open_bundle
from dyce_runtime.bundle.reader import RECORDS, sha256_of
from dyce_runtime.bundle.test_vectors import relative_error
from dyce_runtime.errors import BundleError, PieceError, TargetError, UsageError, VerificationError
from dyce_runtime.execution.contracts import TargetSpec
from dyce_runtime.inputs.datasets import open_dataset
from dyce_targets.cpu.openvino_cpu import OpenVinoCpu
from dyce_targets.nvidia.products import RTX
from dyce_targets.nvidia.targets import TensorRtRtx
from tests.integration.digits import Digits
from tests.integration.small import ANY_LABELS, labelled, tiny
from tests.unit.cli import command

pytestmark = pytest.mark.usefixtures("same_graphs_once")

PRECISIONS = ("float16", "int8", "uint8")
LOOSE = ("--min-agreement", 0.9, "--json")
PICTURES = ("--data", "digits#train", "--val", "digits#test")


def dyce(*arguments: object) -> subprocess.CompletedProcess[str]:
    return command.dyce_here(*map(str, arguments))


def lower(*arguments: object) -> subprocess.CompletedProcess[str]:
    return dyce("lower", *arguments)


def refused(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    assert done.returncode != 0
    document = json.loads(done.stdout)
    assert document["status"] == "error", done.stderr
    return document["error"]


def contents(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def lowered(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits in all precisions; for reading only."""
    path = tmp_path_factory.mktemp("lowered") / "all.dyce"
    done = lower(digits.path, "--precision", ",".join(PRECISIONS), *PICTURES, "-o", path, *LOOSE)
    assert done.returncode == 0, done.stderr
    return path


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_the_bundle_says_of_a_precision_is_so(digits: Digits, lowered: Path, precision: str) -> None:
    before, after = open_bundle(lowered), open_bundle(lowered).precision(precision)
    told = after.manifest.lowering
    assert told is not None
    assert after.manifest.precision == precision
    known, records = (Records.load(bundle.file(RECORDS)) for bundle in (before, after))

    def agreement(split: str) -> float:
        both = [found.of_split(split) for found in (known, records)]
        named = map(before.configuration, before.configurations.named)
        return min((exits_taken(both[0], one) == exits_taken(both[1], one)).mean() for one in named)

    assert agreement("search") >= 0.9, "by these samples it was chosen what stays in float32"
    assert told.exit_agreement == agreement("test")
    assert told.samples == (known.split == "test").sum()
    right = [
        (found.of_split("test").predictions[:, -1] == found.of_split("test").labels).mean()
        for found in (known, records)
    ]
    assert (told.accuracy_float32, told.accuracy) == pytest.approx(right)
    size = [sum(b.size(p.id) for p in b.manifest.pieces if p.role == "segment") for b in (before, after)]
    assert size[1] < {"float16": 0.6, "int8": 0.45, "uint8": 0.45}[precision] * size[0]


def elsewhere(path: Path, target: str, split: str) -> list[float]:
    """By named configuration, the share of a split's samples that leave elsewhere than recorded."""
    bundle = open_bundle(path)
    records = Records.load(bundle.file(RECORDS)).of_split(split)
    data = open_dataset("digits#test")
    rows = {hash: row for row, hash in enumerate(data.hashes.tolist())}
    ids = [exit.id for exit in bundle.manifest.exits]
    shares = []
    with load(path, target) as session:
        images = session.preprocess(data.images([rows[hash] for hash in records.hashes.tolist()]))
        for name in bundle.configurations.named:
            session.use(name)
            columns = exits_taken(records, bundle.configuration(name))
            expected = [ids.index(records.heads[c][0]) if c < len(records.heads) else len(ids) - 1 for c in columns]
            shares.append(float((session(images).exit != expected).mean()))
    return shares


@pytest.mark.parametrize("precision", PRECISIONS)
def test_samples_leave_where_its_own_records_say(lowered: Path, precision: str) -> None:
    """Records, thresholds and what runs belong together, spans included."""
    for split in ("search", "certification", "test"):
        assert max(elsewhere(lowered / "precisions" / precision, "onnxruntime", split)) <= 0.01


def test_another_engine_takes_the_exits_that_the_bundle_tells(lowered: Path) -> None:
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    for precision in PRECISIONS:
        bundle = open_bundle(lowered).precision(precision)
        told = bundle.manifest.lowering
        assert told is not None
        assert told.target == "onnxruntime"
        assert told.exit_mismatch_rate.keys() == {"openvino"}
        shares = elsewhere(bundle.path, "openvino", "test")
        assert max(shares) == pytest.approx(told.exit_mismatch_rate["openvino"], abs=0.01), precision
        assert max(shares) <= 0.05, precision


def test_records_can_be_made_in_another_engine(digits: Digits, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    asked, new = ("--precision", "uint8", *PICTURES), tmp_path / "new.dyce"
    done = lower(digits.path, *asked, "--target", "openvino", "-o", new, *LOOSE)
    assert done.returncode == 0, done.stderr
    path = new / "precisions/uint8"
    assert open_bundle(path).manifest.lowering.target == "openvino"
    assert max(elsewhere(path, "openvino", "search")) <= 0.01
    assert "no target 'abacus'" in refused(lower(digits.path, *asked, "--target", "abacus", "--json"))["message"]


@pytest.mark.parametrize("error", [BundleError, PieceError, TargetError])
def test_an_engine_that_fails_is_only_missing_from_the_comparison(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def fail(*_: object) -> None:
        raise error("it does not run this piece")

    monkeypatch.setattr(OpenVinoCpu, "open", fail)
    done = lower(digits.path, "--precision", "float16", *PICTURES, "-o", tmp_path / "half.dyce", *LOOSE)
    assert done.returncode == 0, done.stderr
    lowering = open_bundle(tmp_path / "half.dyce").precision("float16").manifest.lowering
    assert lowering is not None
    assert "openvino" not in lowering.exit_mismatch_rate


def computes_in_bfloat16() -> bool:
    openvino = pytest.importorskip("openvino", reason="the extra openvino is not installed")
    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def test_bfloat16_is_what_openvino_computes_the_same_graphs_in(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not computes_in_bfloat16():
        pytest.skip("this processor does not compute in bfloat16")
    new = tmp_path / "new.dyce"
    done = lower(digits.path, "--precision", "bfloat16", *PICTURES, "-o", new, *LOOSE)
    assert done.returncode == 0, done.stderr
    bundle = open_bundle(new).precision("bfloat16")
    told = bundle.manifest.lowering
    assert told is not None
    assert (told.target, told.exit_mismatch_rate, told.kept) == ("openvino", {}, ())
    assert 1e-4 < told.logits_error < 0.1
    assert max(elsewhere(bundle.path, "openvino", "search")) <= 0.01
    with pytest.raises(TargetError, match="onnxruntime computes in the precision of the graphs"):
        load(bundle.path, "onnxruntime")
    with load(bundle.path, "openvino") as session:
        assert session.spec.precision == "bfloat16"
    if RTX.missing() is None:
        refused_to = dyce("compile", bundle.path, "--target", "rtx:sm86", "--json")
        assert "found a request for bfloat16" in refused(refused_to)["message"]
    monkeypatch.setattr("openvino.Core.get_property", lambda self, device, name: ["FP32"])
    with pytest.raises(TargetError, match="does not compute in bfloat16"):
        load(bundle.path, "openvino")


def bench(*words: object) -> subprocess.CompletedProcess[str]:
    """Apart: it makes onnxruntime's process-wide pool."""
    return command.dyce("bench", *map(str, words))


def test_a_benchmark_says_how_the_precision_differs(lowered: Path) -> None:
    words = [lowered / "precisions/uint8", "--data", "digits#test", "--limit", 20, "--config", "fast"]
    told = open_bundle(lowered).precision("uint8").manifest.lowering
    assert told is not None
    printed = bench(*words)
    assert f"uint8 against float32: {told.exit_agreement:.1%} of {told.samples} unseen samples" in printed.stdout
    document = json.loads(bench(*words, "--json").stdout)
    assert document["environment"]["precision"] == "uint8"
    assert document["lowering"]["exit_agreement"] == told.exit_agreement


def test_test_vectors_are_what_the_precision_computes(lowered: Path) -> None:
    for precision in PRECISIONS:
        path = lowered / "precisions" / precision
        with np.load(path / "testvectors/vectors.npz") as file, load(path, "onnxruntime") as session:
            session.use("full")
            told = session.manifest.lowering
            assert told is not None
            # The uncut model need not round where the chain does.
            assert relative_error(file["logits"], session(file["images"]).logits, file["logits"]) < told.logits_error


def test_the_bundle_itself_stays_as_it_was(digits: Digits, lowered: Path) -> None:
    before, after = contents(digits.path), contents(lowered)
    assert {name: after[name] for name in before if name != "manifest.json"} == {
        name: digest for name, digest in before.items() if name != "manifest.json"
    }
    assert open_bundle(lowered).manifest.precisions == PRECISIONS
    assert open_bundle(digits.path).manifest.precisions == ()


def test_a_precision_is_part_of_the_bundle(lowered: Path, tmp_path: Path) -> None:
    """Damage is found; what may change later may; a search keeps it."""
    copy = tmp_path / "copy.dyce"
    shutil.copytree(lowered, copy)
    bundle = open_bundle(copy)
    again = rewrite(bundle, bundle.configurations, tmp_path / "again.dyce")
    assert again.precision("uint8").manifest == bundle.precision("uint8").manifest
    document = copy / "precisions/uint8/configurations.json"
    document.write_text(document.read_text() + "\n")
    open_bundle(copy)
    segment = copy / "precisions/uint8/segments/segment_01.onnx"
    segment.write_bytes(segment.read_bytes() + b"\0")
    with pytest.raises(BundleError, match=r"uint8/segments/segment_01\.onnx was changed"):
        open_bundle(copy)


def test_a_precision_can_be_searched_again_with_spans(lowered: Path, tmp_path: Path) -> None:
    from dyce_calibration.promises.choose import choose
    from dyce_calibration.search.costs import macs_of

    bundle = open_bundle(lowered).precision("uint8")
    found = choose(Records.load(bundle.file(RECORDS)), macs_of(bundle.manifest).with_all_spans(), Search("onepass", 50))
    new = rewrite(bundle, found, tmp_path / "new.dyce")
    assert new.manifest.lowering == bundle.manifest.lowering
    with load(new.path, "onnxruntime") as session:
        assert session.configuration.name == "balanced"


def test_a_precision_that_changes_too_much_is_refused_and_leaves_the_bundle_alone(
    digits: Digits, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.dyce"
    shutil.copytree(digits.path, copy)
    before = contents(copy)
    data, val = open_dataset("digits#train"), open_dataset("digits#test")
    asked = Limits(1.1, 0.0)  # more than there can be: with all but the last segment kept, all exits are the same
    with pytest.raises(VerificationError, match="leave at the same exit") as caught:
        with_precisions(open_bundle(copy), ["int8"], data, val, copy, asked, Progress())
    assert "--min-agreement" in str(caught.value.hint)
    assert contents(copy) == before
    assert [path.name for path in tmp_path.iterdir()] == ["copy.dyce"]


def test_without_output_the_bundle_is_replaced_and_a_precision_renewed(digits: Digits, tmp_path: Path) -> None:
    copy = tmp_path / "copy.dyce"
    shutil.copytree(digits.path, copy)
    (copy / "engines/rtx").mkdir(parents=True)
    (copy / "engines/rtx/full.engine").write_bytes(b"built before")
    (copy / "notes.txt").write_text("nobody's")
    for _ in range(2):
        done = lower(copy, "--precision", "float16", *PICTURES)
        assert done.returncode == 0, done.stderr
        assert open_bundle(copy).manifest.precisions == ("float16",)
    assert "precisions/float16" in done.stdout
    assert "exits agree" in done.stdout
    assert (copy / "engines/rtx/full.engine").read_bytes() == b"built before"
    assert "notes.txt" not in open_bundle(copy).manifest.files
    assert (copy / "notes.txt").read_text() == "nobody's"


def test_mistakes_are_told(digits: Digits, untrained: Any, lowered: Path, tmp_path: Path) -> None:
    out = ("-o", tmp_path / "new.dyce", "--json")
    unknown = refused(lower(digits.path, "--precision", "int4", *PICTURES, *out))
    assert "bfloat16, float16, int8, uint8" in unknown["message"]
    assert "each once" in refused(lower(digits.path, "--precision", "int8,int8", *PICTURES, *out))["message"]
    other = refused(lower(digits.path, "--precision", "int8", "--data", "digits#train", *out))
    assert "not in digits#train" in other["message"]
    assert "--val" in other["hint"]
    assert "no records" in refused(lower(untrained.path, "--precision", "int8", *PICTURES, *out))["message"]
    inner = refused(lower(lowered / "precisions/int8", "--precision", "float16", *PICTURES, *out))
    assert "is in int8" in inner["message"]
    with pytest.raises(BundleError, match="has no int8; it has float32"):
        open_bundle(digits.path).precision("int8")
    assert list(tmp_path.iterdir()) == []


def test_an_export_holds_the_precisions_it_was_asked_for(tmp_path: Path) -> None:
    """Without --val, too: what was recorded is found in the data."""
    data = labelled(tmp_path / "noise.npz", count=600)
    options = replace(ANY_LABELS, precisions=("uint8",), limits=Limits(0.0, 1.0))
    export = export_source(tiny(), ["1", "b3"], tmp_path / "both.dyce", data=data, options=options)
    assert export.manifest.precisions == ("uint8",)
    with load(tmp_path / "both.dyce/precisions/uint8", "onnxruntime") as session:
        assert session.manifest.lowering.calibration == 256
    with pytest.raises(UsageError, match="without data"):
        export_source(tiny(), ["1"], tmp_path / "none.dyce", options=options)
    with pytest.raises(UsageError, match="there is no precision 'half'"):
        Options(precisions=("half",))


def test_an_export_that_changes_too_much_fails_and_keeps_its_work(tmp_path: Path) -> None:
    data = labelled(tmp_path / "noise.npz", count=600)
    options = replace(ANY_LABELS, precisions=("int8",), limits=Limits(1.1, 0.0))
    with pytest.raises(VerificationError, match="leave at the same exit as in float32"):
        export_source(tiny(), ["1", "b3"], tmp_path / "both.dyce", data=data, options=options)
    assert {path.name for path in tmp_path.iterdir()} == {"noise.npz", "both.dyce.work"}


@pytest.mark.skipif(RTX.missing() is not None, reason=str(RTX.missing()))
def test_tensorrt_rtx_builds_float16_and_int8_and_names_what_it_lacks_for_uint8(lowered: Path, tmp_path: Path) -> None:
    target, spec = TensorRtRtx(), TargetSpec(devices=("sm86", "sm89"))
    for precision in ("float16", "int8"):
        bundle = open_bundle(lowered).precision(precision)
        for piece in bundle.piece_specs([piece.id for piece in bundle.runnable(spans=False)]):
            assert target.compile(piece, spec, tmp_path / precision).built
    bundle = open_bundle(lowered).precision("uint8")
    # Which segments stay float32 depends on how this machine rounds; the whole model always has some that do not.
    with pytest.raises(BundleError, match=r"full\.onnx does not load in TensorRT-RTX"):
        target.compile(bundle.piece_specs(["full"])[0], spec, tmp_path / "uint8")
