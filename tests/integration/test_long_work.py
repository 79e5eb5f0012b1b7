"""Work that takes long: interrupted and repeated, or shared by several processes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.digits import digits_net
from dyce_calibration.heads.training import Recipe
from dyce_calibration.records import Records
from dyce_export import calibrate as calibrate_module
from dyce_export import pipeline
from dyce_export.cascade import export_source
from dyce_export.sources.source import from_module
from dyce_runtime import load
from dyce_runtime.bundle.reader import RECORDS
from dyce_runtime.errors import VerificationError
from tests.integration.small import ANY_LABELS, labelled, tiny
from tests.models import INPUT_SIZE, Convolutions, build
from tests.unit.cli.command import dyce_here

pytestmark = pytest.mark.usefixtures("same_graphs_once")

OPTIONS = replace(ANY_LABELS, recipe=Recipe(epochs=3))


def records_of(bundle: Path) -> Records:
    """In the order of the pictures' hashes: several processes write them in another one."""
    records = Records.load(bundle / RECORDS)
    return records.take(np.argsort(records.hashes, kind="stable"))


def test_a_refused_or_interrupted_export_computes_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data, output = labelled(tmp_path / "data.npz"), tmp_path / "tiny.dyce"
    export_source(tiny(), ["2"], tmp_path / "whole.dyce", data=data, options=OPTIONS)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "choose", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            export_source(tiny(), ["2"], output, data=data, options=OPTIONS)
    assert not output.exists()
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "verify", lambda *_: (_ for _ in ()).throw(VerificationError("as a test")))
        patch.setattr(calibrate_module.Backbone, "__call__", lambda *_: pytest.fail("features were computed again"))
        with pytest.raises(VerificationError):
            export_source(tiny(), ["2"], output, data=data, options=OPTIONS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.npz", "tiny.dyce.work", "whole.dyce"]
    export_source(tiny(), ["2"], output, data=data, options=OPTIONS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.npz", "tiny.dyce", "whole.dyce"]
    whole, found = records_of(tmp_path / "whole.dyce"), records_of(output)
    np.testing.assert_array_equal(whole.scores, found.scores)
    np.testing.assert_array_equal(whole.split, found.split)


def test_other_pictures_are_other_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    output = tmp_path / "tiny.dyce"
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "choose", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            export_source(tiny(), ["2"], output, data=labelled(tmp_path / "a.npz", 400), options=OPTIONS)
    export_source(tiny(), ["2"], output, data=labelled(tmp_path / "b.npz", 300), options=OPTIONS)
    assert len(records_of(output)) < 150, "30 % of 300 were held out"


def test_another_model_is_other_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data, output = labelled(tmp_path / "data.npz"), tmp_path / "tiny.dyce"
    other = build(Convolutions)
    with torch.no_grad():
        other.stem.weight.mul_(-1.0)
    source = from_module(other, input_size=INPUT_SIZE)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "choose", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            export_source(tiny(), ["2"], output, data=data, options=OPTIONS)
    export_source(source, ["2"], output, data=data, options=OPTIONS)
    export_source(source, ["2"], tmp_path / "afresh.dyce", data=data, options=OPTIONS)
    np.testing.assert_array_equal(records_of(output).scores, records_of(tmp_path / "afresh.dyce").scores)


def launched(verb: str, *words: str) -> subprocess.CompletedProcess[str]:
    """``dyce export`` under a launcher that starts two processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "dyce_export"]
    return subprocess.run([sys.executable, *launcher, *words], capture_output=True, text=True, check=False, timeout=200)


def test_two_processes_end_with_what_one_computes(tmp_path: Path):
    """The same command under a launcher; only the order of the sums differs."""
    pytest.importorskip("accelerate", reason="several processes talk through Accelerate")
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    torch.manual_seed(0)
    torch.save(digits_net().state_dict(), tmp_path / "model.pt")
    command = [
        *("export", tmp_path / "model.pt", "--model", "benchmarks.digits:digits_net", "--exits", "2,4"),
        *("--data", "digits#train", "--val", "digits#test", "--input-size", "1,16,16", "--mean", ".5", "--std", ".5"),
        *("--heads", "mlp1x1000,mlp3x500", "--epochs", "1", "--json", "--allow-suspicious"),
    ]
    documents = {}
    for name, run in (("one", dyce_here), ("two", launched)):
        done = run(*map(str, command), "-o", str(tmp_path / f"{name}.dyce"))
        assert done.returncode == 0, done.stderr
        documents[name] = json.loads(done.stdout)  # one document: one process prints
    assert documents["two"]["verify"]["verdict"] == "passed"
    one, two = (records_of(tmp_path / f"{name}.dyce") for name in ("one", "two"))
    np.testing.assert_array_equal(one.hashes, two.hashes)
    np.testing.assert_array_equal(one.split, two.split)
    assert (one.predictions == two.predictions).mean() > 0.99
    assert np.abs(one.scores - two.scores).mean() < 1e-3
    with load(tmp_path / "two.dyce") as session:
        assert session.manifest.splits.samples["heads"] == 1347, "each sample was counted once"
    assert not (tmp_path / "two.dyce.work").exists()
