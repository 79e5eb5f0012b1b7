"""Measure the wall-clock time and peak memory of an export and of an import, from outside the process.

``python -m benchmarks.footprint`` exports resnet50 at three exits through the command line, without data and therefore
without training heads, and imports the runtime, each several times. It writes ``results/footprint.json``. Every import
is compared with an empty Python process that runs right after it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks import machine

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "footprint.json"
EXPORT = "from dyce_export.cli.main import dyce_export; dyce_export()"
ALLOWED = {"export_seconds": 30, "export_peak_gib": 3, "import_ms": 150}


def timed(arguments: list[str]) -> tuple[float, float]:
    """Return the seconds and the peak memory in GiB of a Python process, from start to end."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status != 0:
        raise SystemExit(f"{arguments} ended with status {os.waitstatus_to_exitcode(status)}")
    return seconds, usage.ru_maxrss / 2**20


def measure_export(rounds: int = 3) -> dict[str, float]:
    """Measure the median time and the largest peak memory of exports of resnet50 at exits 3, 7 and 12."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["-c", EXPORT, "timm:resnet50", "--exits", "3,7,12", "-o", f"{folder}/resnet50.dyce", "--force"]
        runs = [timed(command) for _ in range(rounds)]
    return {"export_seconds": median(s for s, _ in runs), "export_peak_gib": max(memory for _, memory in runs)}


def measure_import(rounds: int = 15) -> dict[str, float]:
    """Measure the median time that ``import dyce_runtime`` adds to an empty process, in milliseconds."""
    timed(["-c", "import dyce_runtime"])
    pairs = [(timed(["-c", "import dyce_runtime"])[0], timed(["-c", "pass"])[0]) for _ in range(rounds)]
    return {"import_ms": 1e3 * median(ours - empty for ours, empty in pairs)}


def main() -> None:
    measured = {**measure_import(), **measure_export()}
    results = {
        "environment": machine.describe("torch", "timm", "onnxruntime", "numpy"),
        "allowed": ALLOWED,
        "measured": measured,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    for name, value in measured.items():
        print(f"{name}: {value:.2f} (at most {ALLOWED[name]}): {'met' if value <= ALLOWED[name] else 'NOT MET'}")


if __name__ == "__main__":
    main()
