"""Nothing of this machine is read: files stand in for those of others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dyce_runtime import Session
from dyce_runtime.machine_state import memory, power_mode

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


def test_memory_is_that_of_the_process_and_of_the_open_pieces_by_kind(tmp_path: Path, spied: Session):
    write(tmp_path / "self/statm", "1000 250 30 1 0 90 0\n")
    found = memory(spied, tmp_path)
    assert found.pop("resident_bytes") == 250 * os.sysconf("SC_PAGE_SIZE")
    folders = {kind: spied.bundle.path / kind for kind in ("segments", "heads", "spans")}
    assert found == {
        f"{kind}_bytes": sum(file.stat().st_size for file in folder.iterdir()) for kind, folder in folders.items()
    }
    assert all(found.values())


def test_pieces_that_are_not_open_take_no_memory(tmp_path: Path, spied: Session):
    spied.pieces = [piece for piece in spied.pieces if spied.manifest.piece(piece).kind != "span"]
    found = memory(spied, tmp_path)
    assert (found["spans_bytes"], found["resident_bytes"]) == (0, None)
