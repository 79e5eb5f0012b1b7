"""``dyce bench`` as a user meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from dyce_runtime import open_bundle
from dyce_runtime.bundle.configuration import Entry
from dyce_runtime.bundle.measured import read_measured
from dyce_runtime.bundle.reader import REPORT, write_configurations
from tests.bundles import on
from tests.unit.cli.command import SCRIPT, dyce, dyce_here


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


def test_costs_measured_on_this_machine_are_searched_with(searchable: Path, pictures: Path, tmp_path: Path) -> None:
    table = tmp_path / "ms.json"
    measured = dyce("bench", str(searchable), "--data", str(pictures), "--write-cost-table", str(table), "--json")
    assert measured.returncode == 0, measured.stderr
    costs = json.loads(table.read_text())
    assert list(costs["backbone"]) == ["3", "7", "final"]
    assert list(costs["backbone"].values()) == sorted(costs["backbone"].values())
    assert costs["measured"]["target"] == "onnxruntime"
    done = dyce_here("search", str(searchable), "--costs", str(table), "--json")
    assert done.returncode == 0, done.stderr
    assert open_bundle(searchable).configurations.unit == "ms"


def test_figures_of_a_benchmark_stay_while_the_configuration_stays(searchable: Path, pictures: Path) -> None:
    def measured() -> set[str]:
        opened = open_bundle(searchable)
        measured = read_measured(opened)
        return {name for name, entry in opened.configurations.named.items() if measured.figures(entry)}

    def save(*names: str) -> None:
        words = [word for name in names for word in ("--config", name)]
        done = dyce("bench", str(searchable), "--data", str(pictures), "--save", *words)
        assert done.returncode == 0, done.stderr

    save("full", "fast")
    assert measured() == {"full", "fast"}
    dyce_here("search", str(searchable))
    assert "full" in measured()
    assert "fast" not in measured()
    save("fast")
    dyce_here("search", str(searchable))
    assert {"full", "fast"} <= measured()
    printed = dyce_here("inspect", str(searchable)).stdout
    cpu = read_measured(open_bundle(searchable)).benched[0].figures.cpu
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
    report.unlink()
    assert dyce("bench", str(searchable), "--data", str(pictures), "--save").returncode == 0
    assert not report.exists()


def test_a_benchmark_does_not_run_where_its_figures_cannot_be_kept(bundle_copy: Path, pictures: Path) -> None:
    script = (
        "import errno, os\nfrom dyce_runtime.measure import bench\n"
        "def refuse(*_): raise OSError(errno.EROFS, os.strerror(errno.EROFS))\n"
        "os.replace = refuse\nbench.benchmark = lambda *_, **__: print('measured')\n"
    )
    words = ["bench", str(bundle_copy), "--data", str(pictures), "--save"]
    done = subprocess.run([sys.executable, "-c", script + SCRIPT, *words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "measured.json cannot be written: Read-only file system" in " ".join(done.stderr.split())


# A clock and a meter that the pieces turn, by a millisecond and 10 mJ each. The idle machine draws nothing.
METER = """
from types import SimpleNamespace
from dyce_runtime.measure import energy, piece_costs
from dyce_targets.cpu.host_context import HostContext
count = SimpleNamespace(seconds=0.0, joules=0.0)
def sleep(seconds):
    count.seconds += seconds
def counted(run):
    def one(*arguments):
        sleep(0.001)
        count.joules += 0.01
        return run(*arguments)
    return one
for name in ("run", "run_until_exit"):
    setattr(HostContext, name, counted(getattr(HostContext, name)))
piece_costs.time = SimpleNamespace(perf_counter=lambda: count.seconds, sleep=sleep)
piece_costs._ENERGY_SECONDS = 0.02
class Meter(energy.Meter):
    source = "what this process computes, at 10 W"
    joules = lambda self: count.joules
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
    done = dyce_here("search", str(searchable), "--costs", str(table), "--json")
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
        "from pathlib import Path\nfrom dyce_runtime.measure import energy\nfind = energy.find_meter\n"
        f"energy.find_meter = lambda: find(Path({str(tmp_path / 'sys')!r}))\n"
    )
    done = bench_joules(script, tiny_bundle, "--data", pictures, "--write-cost-table", tmp_path / "joules.json")
    assert done.returncode == 4
    assert "no energy meter was found" in " ".join(done.stderr.split())
    assert not (tmp_path / "joules.json").exists()
