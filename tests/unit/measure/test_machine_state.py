"""Nothing of this machine is read: files stand in for those of others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dyce_runtime.measure.machine_state import power_mode, resident_bytes

MODES = "< POWER_MODEL ID=0 NAME=MAXN >\nX 1\n< POWER_MODEL ID=2 NAME=15W >\n< POWER_MODEL ID=12 NAME=COOL >\n"
NVPMODEL = "#!/bin/sh\necho 'NVPM VERB: Config'\necho 'NV Power Mode: MODE_30W'\necho 3\n"


@pytest.fixture(autouse=True)
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder with programs."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}")
    return folder


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_governor_of_the_processor_is_read(tmp_path: Path):
    write(tmp_path / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave\n")
    assert power_mode(tmp_path) == {"cpu_governor": "powersave", "power_mode": "unknown"}


def test_a_machine_that_does_not_tell_is_unknown(tmp_path: Path):
    assert power_mode(tmp_path) == {"cpu_governor": "unknown", "power_mode": "unknown"}


@pytest.mark.parametrize(("status", "mode"), [("pmode:0002 fmode:quiet", "2 (15W)"), ("pmode:0000", "0 (MAXN)")])
def test_the_mode_of_a_jetson_has_a_number_and_a_name(tmp_path: Path, status, mode):
    write(tmp_path / "var/lib/nvpmodel/status", status)
    write(tmp_path / "etc/nvpmodel.conf", MODES)
    assert power_mode(tmp_path)["power_mode"] == mode


def test_a_mode_without_a_name_is_a_number(tmp_path: Path):
    write(tmp_path / "var/lib/nvpmodel/status", "pmode:0007")
    write(tmp_path / "etc/nvpmodel.conf", MODES)
    assert power_mode(tmp_path)["power_mode"] == "7"


def test_where_no_mode_is_stored_nvpmodel_is_asked(tmp_path: Path, programs: Path):
    write(programs / "nvpmodel", NVPMODEL)
    (programs / "nvpmodel").chmod(0o755)
    assert power_mode(tmp_path)["power_mode"] == "MODE_30W"


@pytest.mark.parametrize("text", ["#!/bin/sh\nexit 1\n", "no program at all"])
def test_an_nvpmodel_that_does_not_answer_leaves_it_unknown(tmp_path: Path, programs: Path, text):
    write(programs / "nvpmodel", text)
    (programs / "nvpmodel").chmod(0o755)
    assert power_mode(tmp_path)["power_mode"] == "unknown"


def test_memory_is_that_of_the_process(tmp_path: Path):
    write(tmp_path / "self/statm", "1000 250 30 1 0 90 0\n")
    assert resident_bytes(tmp_path) == 250 * os.sysconf("SC_PAGE_SIZE")
    assert resident_bytes(tmp_path / "nothing") is None
