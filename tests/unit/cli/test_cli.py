"""The command line as a user meets it: where output goes, exit codes, and one clear message per mistake."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from dyce_export.cli import console
from dyce_export.cli.main import app
from dyce_runtime.errors import DyceError
from dyce_targets import profiles
from dyce_targets.cpu.processors import CpuTarget
from tests.unit.cli.command import SCRIPT, dyce, dyce_here

VERBS = ("export", "compile", "lower", "run", "bench", "search", "select-saver", "inspect")


@pytest.mark.parametrize("verb", VERBS)
def test_every_help_works_in_the_base_install(verb: str) -> None:
    blocked = ["torch", "timm", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "sklearn"]
    script = f"import sys; [sys.modules.__setitem__(name, None) for name in {blocked}]; {SCRIPT}"
    done = subprocess.run([sys.executable, "-c", script, verb, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--json" in done.stdout


def test_export_without_its_extra_says_what_to_install() -> None:
    script = f"import sys; sys.modules['onnxscript'] = None; {SCRIPT}"
    arguments = ["export", "timm:resnet18", "--exits", "1"]
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "dyce-export[export]" in done.stderr
    assert "Traceback" not in done.stderr


def test_run_prints_results_on_stdout_and_nothing_else(tiny_bundle: Path, pictures: Path) -> None:
    done = dyce("run", str(tiny_bundle), str(pictures), "--config", "fast", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["command"], document["status"], document["schema_version"]) == ("run", "ok", "1.0")
    assert [Path(row["input"]).name for row in document["results"]] == ["0.png", "1.png", "2.png"]
    assert {row["configuration"] for row in document["results"]} == {"fast"}
    assert all(0 <= row["confidence"] <= 1 and isinstance(row["exit"], str) for row in document["results"])


def test_run_as_a_table_names_every_picture(tiny_bundle: Path, pictures: Path) -> None:
    done = dyce("run", str(tiny_bundle), str(pictures))
    assert done.returncode == 0, done.stderr
    for n in range(3):
        assert f"{n}.png" in done.stdout


def test_inspect_without_a_bundle_lists_the_targets() -> None:
    document = json.loads(dyce("inspect", "--json").stdout)
    ours = next(target for target in document["targets"] if target["name"] == "onnxruntime")
    assert ours.pop("version") == version("onnxruntime")
    assert ours == {"name": "onnxruntime", "available": True, "reason": None, "builds": False}
    assert document["device"] in document["devices"]


def test_inspect_says_what_this_machine_is_and_how_to_get_what_it_lacks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a Jetson, on which TensorRT is not installed."""
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(profiles, "board", lambda: "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit")
    monkeypatch.setattr(CpuTarget, "available", lambda self: "it is not installed; pip install it")
    assert console.run(app, "dyce", ["inspect"]) == 0
    shown = capsys.readouterr().out
    assert "This machine is taken for jetson-orin-nano: Jetson Orin Nano." in shown
    assert "tensorrt, which does not run here yet. It needs JetPack 6: TensorRT 10.3, Python 3.10:" in shown
    assert "sudo apt install python3-libnvinfer" in shown
    assert "sudo jetson_clocks" in shown
    assert "openvino  it is not installed; pip install it" in shown
    assert "rtx-40" in shown


def test_inspect_shows_thresholds_and_exits(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert console.run(app, "dyce", ["inspect", str(tiny_bundle)]) == 0
    printed = capsys.readouterr().out
    for word in ("balanced", "final", "MMACs", "verification", "span_00_01", "memory"):
        assert word in printed


BASELINE = ["--baseline"]


TABLE = ["--write-cost-table", "table.json"]


MISTAKES = {
    "no model": (["export", "--exits", "1"], 2, "usage", "no model"),
    "no exits": (["export", "model.pt"], 2, "usage", "no exits"),
    "exits and their list": (["export", "model.pt", "--exits", "1", "--list-exits"], 2, "usage", "do not go together"),
    "val without data": (["export", "model.pt", "--exits", "1", "--val", "x"], 2, "usage", "--data"),
    "numbers expected": (["export", "model.pt", "--exits", "1", "--mean", "a,b"], 2, "usage", "--mean"),
    "missing checkpoint": (["export", "missing.pt", "--exits", "1"], 1, "model", "missing.pt"),
    "exits of a bundle": (["export", "BUNDLE", "--exits", "1"], 2, "usage", "is a bundle, whose exits are chosen"),
    "savers and a list": (["export", "model.pt", "--saver", "x", "--list-exits"], 2, "usage", "do not go together"),
    "classes of no saver": (["export", "model.pt", "--exits", "1", "--saver-classes", "names"], 2, "usage", "--saver"),
    "a sequence without savers": (["export", "model.pt", "--exits", "1", "--esn"], 2, "usage", "without savers"),
    "a sequence without exits": (
        ["export", "m.pt", "--saver", "x", "--esn", "--data", "y"],
        2,
        "usage",
        "without exits",
    ),
    "a sequence without data": (["export", "BUNDLE", "--saver", "x", "--esn"], 2, "usage", "without data"),
    "no pool": (["select-saver", "BUNDLE", "--data", "DATA"], 2, "usage", "no candidates"),
    "a candidate twice": (["select-saver", "BUNDLE", "--pool", "a.pt, a.pt", "--data", "x"], 2, "usage", "appears"),
    "a pool without pictures": (["select-saver", "BUNDLE", "--pool", "a.pt"], 2, "usage", "no pictures"),
    "a pool without a base": (["select-saver", "--pool", "a.pt", "--data", "x"], 2, "usage", "no base"),
    "a base without records": (["select-saver", "BUNDLE", "--pool", "a", "--data", "DATA"], 1, "bundle", "no records"),
    "unknown option": (["run", "--frobnicate"], 2, "usage", "frobnicate"),
    "unknown verb": (["frobnicate"], 2, "usage", "frobnicate"),
    "no bundle": (["run", "missing.dyce", "cat.jpg"], 1, "bundle", "missing.dyce"),
    "no such data": (["bench", "BUNDLE", "--data", "missing"], 1, "data", "missing"),
    "no such target": (["run", "BUNDLE", "cat.jpg", "--target", "quantum"], 4, "target", "quantum"),
    "no such unit": (["bench", "BUNDLE", "--data", "x", "--unit", "euros"], 2, "usage", "expected ms or joules"),
    "a unit of nothing": (["bench", "BUNDLE", "--data", "x", "--unit", "joules"], 2, "usage", "--write-cost-table"),
    "two ends at once": (["bench", "BUNDLE", "--data", "x", *TABLE, "--save"], 2, "usage", "do not go together"),
    "no whole batch": (["bench", "BUNDLE", "--data", "DATA", *TABLE, "--batch", "4"], 1, "data", "3 pictures"),
    "a batch of words": (["bench", "BUNDLE", "--data", "x", "--batch", "1,many"], 2, "usage", "'1,many'"),
    "a batch of none": (["bench", "BUNDLE", "--data", "x", "--batch", "8,0"], 2, "usage", "'8,0'"),
    "no batch at all": (["bench", "BUNDLE", "--data", "x", "--batch", "1,"], 2, "usage", "'1,'"),
    "a batch twice": (["bench", "BUNDLE", "--data", "x", "--batch", "2,1,2"], 2, "usage", "'2,1,2'"),
    "no whole batch to time": (["bench", "BUNDLE", "--data", "DATA", "--batch", "1,4"], 1, "data", "3 pictures"),
    "sizes of a table": (["bench", "BUNDLE", "--data", "x", *TABLE, "--batch", "1,2"], 2, "usage", "one --batch"),
    "baseline of a table": (["bench", "BUNDLE", "--data", "x", *TABLE, "--baseline"], 2, "usage", "do not go together"),
    "baseline and more": (["bench", "BUNDLE", "--data", "x", *BASELINE, "--config", "all"], 2, "usage", "--config"),
    "baseline to keep": (["bench", "BUNDLE", "--data", "x", *BASELINE, "--save"], 2, "usage", "--save"),
    "nothing to bench": (["bench", "BUNDLE", "--data", "DATA", "--config", "slow"], 1, "configuration", "'slow'"),
    "no such configuration": (["run", "BUNDLE", "cat.jpg", "--config", "faster"], 1, "configuration", "faster"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gives_one_message_an_exit_code_and_a_json_document(
    mistake: str, tiny_bundle: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, exit_code, code, word = MISTAKES[mistake]
    if "sequence" in mistake or mistake in ("numbers expected", "missing checkpoint", "a base without records"):
        pytest.importorskip("torch", reason="exporting needs torch")
    paths = {"BUNDLE": str(tiny_bundle), "DATA": str(pictures)}
    monkeypatch.chdir(tmp_path)
    command = dyce if arguments[0] in ("run", "bench") else dyce_here
    done = command(*(paths.get(argument, argument) for argument in arguments), "--json")
    assert done.returncode == exit_code
    error = json.loads(done.stdout)["error"]
    assert error["code"] == code
    assert word in error["message"]
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == [pictures]


def test_a_taken_default_name_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch", reason="exporting needs torch")
    monkeypatch.chdir(tmp_path)
    taken = tmp_path / "model.dyce"
    taken.mkdir()
    (taken / "precious").write_text("x")
    assert console.run(app, "dyce", ["export", "model.pt", "--exits", "1"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "model.dyce already exists" in captured.err
    assert "-o" in captured.err
    assert (taken / "precious").read_text() == "x"


def test_our_own_bug_is_told_apart(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("dyce_runtime.targets.registry.names", lambda: 1 / 0)
    assert console.run(app, "dyce", ["inspect", "--json"]) == 70
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "bug"


def test_interruption_ends_quietly(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dyce_runtime.targets.registry.names", interrupt)
    assert console.run(app, "dyce", ["inspect"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_every_error_has_its_own_code() -> None:
    kinds = DyceError.__subclasses__()
    assert len({kind.code for kind in kinds}) == len(kinds)
    assert {kind.exit_code for kind in kinds} == {1, 2, 3, 4}


def test_a_terminated_export_leaves_nothing_behind(tmp_path: Path) -> None:
    script = (
        "import os, signal\n"
        "from dyce_export.cli import main\n"
        "from dyce_export.writing.staging import staged\n"
        "from pathlib import Path\n"
        "def export():\n"
        "    with staged(Path('model.dyce'), force=False) as folder:\n"
        "        (folder / 'half').write_text('x')\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        signal.pause()\n"
        "main.app.command('slow')(export)\n"
        "main.dyce()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "slow"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 130, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_dyce_export_is_dyce_export(tmp_path: Path) -> None:
    script = "from dyce_export.cli.main import dyce_export; dyce_export()"
    done = subprocess.run(
        [sys.executable, "-c", script, "model.pt", "--json"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    document = json.loads(done.stdout)
    assert document["command"] == "export"
    assert "--list-exits" in document["error"]["hint"]
