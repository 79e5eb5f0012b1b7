"""The command line as a user meets it: where output goes, exit codes, and one clear message per mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from dyce_calibration.costs import CostTable
from dyce_calibration.released import write_released
from dyce_export.cli import console
from dyce_export.cli.main import app
from dyce_runtime import open_bundle
from dyce_runtime.bundle import MANIFEST, RECORDS, REPORT, files_of, sha256_of, write_configurations, write_document
from dyce_runtime.configuration import Entry
from dyce_runtime.errors import DyceError
from tests.bundles import HEAD, on
from tests.unit.test_choose import COSTS, make_records

VERBS = ("export", "run", "bench", "search", "inspect")
SCRIPT = "from dyce_export.cli.main import dyce; dyce()"


def dyce(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own: ``run`` and ``bench`` make onnxruntime's process-wide pool."""
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, cwd=cwd, check=False
    )


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for n in range(3):
        Image.fromarray(generator.integers(0, 256, (9, 9), dtype=np.uint8)).save(folder / f"{n}.png")
    return folder


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


def test_bench_measures_every_configuration_next_to_the_uncut_model(tiny_bundle: Path, pictures: Path) -> None:
    done = dyce("bench", str(tiny_bundle), "--data", str(pictures), "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert {"p50_ms", "p90_ms", "p99_ms", "throughput", "accuracy"} <= set(document["uncut"])
    assert [entry["name"] for entry in document["configurations"]] == ["full", "accurate", "balanced", "fast"]
    for entry in document["configurations"]:
        assert sum(entry["share_per_exit"].values()) == pytest.approx(1)
        assert entry["time_ratio_to_uncut"] > 0
    assert document["verdict"]
    assert document["splits"] == {"unseen": 3}


def test_bench_prints_a_table_per_batch_size_with_the_uncut_model_first(tiny_bundle: Path, pictures: Path) -> None:
    done = dyce("bench", str(tiny_bundle), "--data", str(pictures), "--batch", "1,3")
    assert done.returncode == 0, done.stderr
    lines = [line.strip() for line in done.stdout.splitlines()]
    firsts = [next(line for line in lines[n + 5 :] if line) for n, line in enumerate(lines) if " per call; " in line]
    assert [first.split()[0] for first in firsts] == ["uncut", "uncut"]
    assert sum("time saved" in line and "MACs saved" in line and line.startswith("config") for line in lines) == 2
    assert sum("what cutting costs when every seam is paid" in line for line in lines) == 2
    assert [line[:28] for line in lines[-2:]] == ["With 1 picture per call earl", "With 3 pictures per call ear"]
    assert "memory in use" in done.stdout
    assert "power mode" in done.stdout
    assert "mJ" not in done.stdout


def test_bench_takes_several_batch_sizes_and_the_whole_front(bundle_copy: Path, pictures: Path) -> None:
    known = open_bundle(bundle_copy).configurations
    write_configurations(msgspec.structs.replace(known, front=(Entry(on(exit3=0.1)),)), bundle_copy)
    words = ["bench", str(bundle_copy), "--data", str(pictures), "--batch", "1, 3", "--config", "all", "--json"]
    document = json.loads(dyce(*words).stdout)
    assert [part["batch"] for part in document["batches"]] == [1, 3]
    for part in document["batches"]:
        assert [e["name"] for e in part["configurations"]] == ["full", "accurate", "balanced", "fast", "front 1"]
        assert part["chain"]["time_ratio_to_uncut"] > 0
        for entry in part["configurations"]:
            assert entry["time_saved"] == pytest.approx(1 - entry["time_ratio_to_uncut"])
            assert entry["macs_saved"] == pytest.approx(1 - entry["macs_share"])
    assert {key: document[key] for key in document["batches"][0]} == document["batches"][0]
    assert min(document["memory"].values()) > 0
    assert {"cpu_governor", "power_mode"} <= set(document["environment"])


def test_bench_of_the_baseline_runs_nothing_else(tiny_bundle: Path, pictures: Path) -> None:
    words = ["bench", str(tiny_bundle), "--data", str(pictures), "--baseline"]
    document = json.loads(dyce(*words, "--json").stdout)
    assert (document["configurations"], document["chain"]) == ([], None)
    assert document["uncut"]["mean_ms"] > 0
    assert "Only the uncut model was measured" in dyce(*words).stdout


def test_inspect_without_a_bundle_lists_the_targets() -> None:
    document = json.loads(dyce("inspect", "--json").stdout)
    assert {"name": "onnxruntime", "available": True, "reason": None} in document["targets"]


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
    mistake: str, tiny_bundle: Path, pictures: Path, tmp_path: Path
) -> None:
    arguments, exit_code, code, word = MISTAKES[mistake]
    if mistake in ("numbers expected", "missing checkpoint"):
        pytest.importorskip("torch", reason="exporting needs torch")
    paths = {"BUNDLE": str(tiny_bundle), "DATA": str(pictures)}
    done = dyce(*(paths.get(argument, argument) for argument in arguments), "--json", cwd=tmp_path)
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
    monkeypatch.setattr("dyce_runtime.targets.names", lambda: 1 / 0)
    assert console.run(app, "dyce", ["inspect", "--json"]) == 70
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "bug"


def test_interruption_ends_quietly(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dyce_runtime.targets.names", interrupt)
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
        "from dyce_export.staging import staged\n"
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


# --- search ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def searchable(bundle_copy: Path) -> Path:
    """A bundle with records of 400 samples."""
    (bundle_copy / RECORDS).parent.mkdir(exist_ok=True)
    replace(make_records(400), heads=(("3", HEAD), ("7", HEAD))).save(bundle_copy / RECORDS)
    manifest = open_bundle(bundle_copy).manifest
    files = {name: sha256_of(bundle_copy / name) for name in files_of(bundle_copy)}
    write_document(msgspec.structs.replace(manifest, files=files), bundle_copy / MANIFEST)
    return bundle_copy


def test_search_replaces_the_configurations_of_a_bundle(searchable: Path) -> None:
    before = open_bundle(searchable).configurations
    document = json.loads(dyce("search", str(searchable), "--json").stdout)
    after = open_bundle(searchable).configurations
    assert after != before
    assert document["configurations"] == json.loads(msgspec.json.encode(after))
    assert document["method"] == "exact"


def test_costs_measured_on_this_machine_are_searched_with(searchable: Path, pictures: Path, tmp_path: Path) -> None:
    table = tmp_path / "ms.json"
    measured = dyce("bench", str(searchable), "--data", str(pictures), "--write-cost-table", str(table), "--json")
    assert measured.returncode == 0, measured.stderr
    costs = json.loads(table.read_text())
    assert list(costs["backbone"]) == ["3", "7", "final"]
    assert list(costs["backbone"].values()) == sorted(costs["backbone"].values())
    assert costs["measured"]["target"] == "onnxruntime"
    done = dyce("search", str(searchable), "--costs", str(table), "--json")
    assert done.returncode == 0, done.stderr
    assert open_bundle(searchable).configurations.unit == "ms"


def test_figures_of_a_benchmark_stay_while_the_configuration_stays(searchable: Path, pictures: Path) -> None:
    def measured() -> set[str]:
        return {name for name, entry in open_bundle(searchable).configurations.named.items() if entry.bench}

    def save(*names: str) -> None:
        words = [word for name in names for word in ("--config", name)]
        done = dyce("bench", str(searchable), "--data", str(pictures), "--save", *words)
        assert done.returncode == 0, done.stderr

    save("full", "fast")
    assert measured() == {"full", "fast"}
    dyce("search", str(searchable))
    assert "full" in measured()
    assert "fast" not in measured()
    save("fast")
    dyce("search", str(searchable))
    assert {"full", "fast"} <= measured()
    printed = dyce("inspect", str(searchable)).stdout
    cpu = open_bundle(searchable).configurations.named["fast"].bench.cpu  # type: ignore[union-attr]
    assert f"measured on {cpu}, onnxruntime, threads default" in printed
    assert "with 3 pictures (3 unseen), 1 per call" in printed


def test_figures_show_in_the_report_which_keeps_the_rest(searchable: Path, pictures: Path) -> None:
    report = searchable / REPORT
    report.write_text("<main>drawn<img src='data:image/png;base64,'></main>")
    done = dyce("bench", str(searchable), "--data", str(pictures), "--save", "--config", "fast")
    assert done.returncode == 0, done.stderr
    page = report.read_text()
    assert page.startswith("<main>drawn<img src='data:image/png;base64,'>")
    assert page.count('<th scope="row">fast</th>') == 1
    assert open_bundle(searchable).configurations.named["fast"].bench is not None
    report.unlink()
    assert dyce("bench", str(searchable), "--data", str(pictures), "--save").returncode == 0
    assert not report.exists()


def test_a_benchmark_does_not_run_for_a_bundle_that_cannot_take_its_figures(bundle_copy: Path, pictures: Path) -> None:
    script = (
        "import errno, os\nfrom dyce_runtime import bench\n"
        "def refuse(*_): raise OSError(errno.EROFS, os.strerror(errno.EROFS))\n"
        "os.replace = refuse\nbench.benchmark = lambda *_, **__: print('measured')\n"
    )
    words = ["bench", str(bundle_copy), "--data", str(pictures), "--save"]
    done = subprocess.run([sys.executable, "-c", script + SCRIPT, *words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "configurations.json cannot be written: Read-only file system" in " ".join(done.stderr.split())


METER = """
import time
from dyce_runtime import energy, piece_costs
piece_costs._IDLE_SECONDS = piece_costs._ENERGY_SECONDS = 0.02
class Meter(energy.Meter):
    source = "what this process computes, at 10 W"
    joules = lambda self: 10 * time.process_time()
energy.find_meter = Meter
"""


def bench_joules(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """``bench --unit joules`` on a machine whose meter the script replaces."""
    words = ["bench", *map(str, arguments), "--unit", "joules"]
    return subprocess.run([sys.executable, "-c", script + SCRIPT, *words], capture_output=True, text=True, check=False)


def test_a_search_takes_costs_in_joules(searchable: Path, pictures: Path, tmp_path: Path) -> None:
    table = tmp_path / "joules.json"
    measured = bench_joules(METER, searchable, "--data", pictures, "--write-cost-table", table)
    assert measured.returncode == 0, measured.stderr
    assert "heads, joules" in measured.stdout
    costs = json.loads(table.read_text())
    assert (costs["unit"], costs["measured"]["meter"]) == ("joules", "what this process computes, at 10 W")
    assert 0 < costs["full"] < 1
    done = dyce("search", str(searchable), "--costs", str(table), "--json")
    assert done.returncode == 0, done.stderr
    assert open_bundle(searchable).configurations.unit == "joules"


def test_joules_stand_beside_milliseconds_where_there_is_a_meter(tiny_bundle: Path, pictures: Path) -> None:
    words = ["bench", str(tiny_bundle), "--data", str(pictures), "--config", "fast"]
    command = [sys.executable, "-c", METER + SCRIPT, *words]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "mJ: energy per picture above the idle machine (what this process computes, at 10 W)." in printed
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    document = json.loads(done.stdout)
    assert document["meter"] == "what this process computes, at 10 W"
    assert document["uncut"]["joules_per_sample"] > 0
    assert document["configurations"][0]["joules_per_sample"] > 0


def test_a_machine_without_a_meter_says_so_and_writes_nothing(
    tiny_bundle: Path, pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "sys").mkdir()
    script = (
        "from pathlib import Path\nfrom dyce_runtime import energy\nfind = energy.find_meter\n"
        f"energy.find_meter = lambda: find(Path({str(tmp_path / 'sys')!r}))\n"
    )
    done = bench_joules(script, tiny_bundle, "--data", pictures, "--write-cost-table", tmp_path / "joules.json")
    assert done.returncode == 4
    assert "no energy meter was found" in " ".join(done.stderr.split())
    assert not (tmp_path / "joules.json").exists()


def test_costs_of_another_bundle_are_refused_and_nothing_changes(searchable: Path, tmp_path: Path) -> None:
    table = tmp_path / "ms.json"
    heads = {"3": {"mlp1x1000": 1.0}, "7": {"mlp1x1000": 1.0}}
    backbone = {"3": 3.0, "7": 7.0, "final": 10.0}
    table.write_bytes(msgspec.json.encode(CostTable("ms", backbone, heads, 10.0, model="0" * 64)))
    before = (searchable / "configurations.json").read_bytes()
    done = dyce("search", str(searchable), "--costs", str(table))
    assert done.returncode == 1
    assert "was measured on another bundle" in done.stderr
    assert (searchable / "configurations.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "expected a bundle or --records"),
        (("--records", "r.npz"), "--records needs --costs"),
        (("BUNDLE", "--test", "t.npz"), "--test goes with --records"),
        (("BUNDLE", "--epsilon", "0"), "epsilon is 0"),
        (("BUNDLE", "--method", "newton"), "no search method"),
        (("BUNDLE", "--max-loss", "0.1", "--max-cost", "0.5"), "do not go together"),
        (("BUNDLE", "--max-cost", "0.001"), "no configuration meets the limit"),
    ],
)
def test_search_refuses_what_makes_no_sense(searchable: Path, arguments: tuple[str, ...], message: str) -> None:
    before = (searchable / "configurations.json").read_bytes()
    done = dyce("search", *(str(searchable) if word == "BUNDLE" else word for word in arguments))
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert (searchable / "configurations.json").read_bytes() == before


def test_a_bundle_without_records_cannot_be_searched(tiny_bundle: Path) -> None:
    done = dyce("search", str(tiny_bundle))
    assert done.returncode == 1
    assert "has no records to search in" in done.stderr


def test_released_records_are_searched_with_their_costs_and_reported_on_test(tmp_path: Path) -> None:
    renamed = CostTable(
        "macs", {"1": 25.0, "2": 60.0, "final": 100.0}, {"1": COSTS.heads["2"], "2": COSTS.heads["5"]}, full=100.0
    )
    for name, seed in (("search", 0), ("test", 1)):
        records = replace(make_records(300, seed), heads=(("1", "mlp1x1000"), ("2", "mlp1x1000")))
        write_released(records, renamed, tmp_path / f"{name}.npz", tmp_path / "macs.json")
    words = ("search", "--records", "search.npz", "--costs", "macs.json", "--test", "test.npz")
    document = json.loads(dyce(*words, "--points", "20", "--json", cwd=tmp_path).stdout)
    assert (document["method"], document["points"]) == ("exact", 20)
    assert document["base"]["search"]["samples"] == document["base"]["test"]["samples"] == 300
    assert len(document["front"]) > 10
    for point in document["front"]:
        assert {"accuracy", "cost", "loss"} <= set(point["search"]) & set(point["test"])
        assert point["certified"] is None
    done = dyce(*words, "--points", "20", cwd=tmp_path)
    assert "points of the front" in done.stdout
    assert "probably trained" not in done.stderr


def test_a_model_that_knows_the_samples_to_search_on_is_noticed(tmp_path: Path) -> None:
    for name, quality in (("search", 0.99), ("test", 0.85)):
        records = make_records(300, quality=(0.7, 0.8, quality))
        renamed = replace(records, heads=(("1", "mlp1x1000"), ("2", "mlp1x1000")))
        costs = CostTable(
            "macs", {"1": 25.0, "2": 60.0, "final": 100.0}, {"1": COSTS.heads["2"], "2": COSTS.heads["5"]}, full=100.0
        )
        write_released(renamed, costs, tmp_path / f"{name}.npz", tmp_path / "macs.json")
    words = ("search", "--records", "search.npz", "--costs", "macs.json", "--test", "test.npz", "--points", "5")
    assert "it was probably trained on the former" in " ".join(dyce(*words, cwd=tmp_path).stderr.split())
