"""Engines on disk: found only if they are whole and were built with and from what is wanted."""

from __future__ import annotations

import errno
from pathlib import Path

import msgspec
import pytest

from dyce_runtime.errors import DestinationError
from dyce_targets.nvidia import engines
from dyce_targets.nvidia.engines import Fingerprint, find, write

WANTED = Fingerprint("rtx", "1.7", ("sm86",), "float32", 8, "abc")


def test_what_was_written_is_found(tmp_path: Path):
    path = write(tmp_path / "rtx", "segment_00", WANTED, b"engine")
    assert find(tmp_path / "rtx", "segment_00", WANTED) == path
    assert path.read_bytes() == b"engine"
    assert find(tmp_path / "rtx", "segment_01", WANTED) is None


@pytest.mark.parametrize(
    "change",
    [
        {"product": "tensorrt"},
        {"version": "1.8"},
        {"devices": ()},
        {"precision": "bfloat16"},
        {"max_batch": 1},
        {"onnx": "abd"},
    ],
    ids=str,
)
def test_an_engine_that_was_built_otherwise_is_not_taken(tmp_path: Path, change: dict):
    write(tmp_path, "segment_00", WANTED, b"engine")
    assert find(tmp_path, "segment_00", msgspec.structs.replace(WANTED, **change)) is None


def test_an_engine_that_was_interrupted_or_damaged_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path, "segment_00", WANTED, b"engine")
    newer = msgspec.structs.replace(WANTED, version="1.8")
    replace = engines.write_atomically

    def stop_at_the_note(path: Path, content: bytes) -> None:
        if path.suffix == ".json":
            raise KeyboardInterrupt
        replace(path, content)

    monkeypatch.setattr(engines, "write_atomically", stop_at_the_note)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, "segment_00", newer, b"newer")
    assert find(tmp_path, "segment_00", WANTED) is None
    assert find(tmp_path, "segment_00", newer) is None


def test_a_full_disk_is_our_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(DestinationError, match=r"segment_00.engine cannot be written: No space left on device"):
        write(tmp_path, "segment_00", WANTED, b"engine")
    assert list(tmp_path.iterdir()) == []
