"""Files are replaced as a whole, and what a killed process has left is removed by the next."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dyce_runtime.atomic_write import write_atomically

KILLED = """
import os, signal, sys
from pathlib import Path
from dyce_runtime import atomic_write
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
atomic_write.write_atomically(Path(sys.argv[1]), b"half")
"""


def test_what_a_killed_process_has_left_is_removed_and_nothing_else(tmp_path: Path):
    file = tmp_path / "a[1].json"
    write_atomically(file, b"old")
    subprocess.run([sys.executable, "-c", KILLED, str(file)], check=False)
    assert file.read_bytes() == b"old"
    mine = [tmp_path / name for name in (".a[1].json.swp", ".b.json.12345678", "a[1].json.12345678")]
    for other in mine:
        other.touch()
    assert len([*tmp_path.iterdir()]) == 5
    write_atomically(file, b"new")
    assert sorted(tmp_path.iterdir()) == sorted([file, *mine])
    assert file.read_bytes() == b"new"


def test_many_writers_at_once_lose_nothing(tmp_path: Path):
    file = tmp_path / "a.json"
    contents = [bytes([number]) * 10_000 for number in range(40)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda content: write_atomically(file, content), contents * 5))
    assert file.read_bytes() in contents
    assert [*tmp_path.iterdir()] == [file]
