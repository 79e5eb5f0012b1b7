"""Measure a session with and without a governor while another program temporarily uses the processor.

``python -m benchmarks.governor`` uses the bundle of ``python -m benchmarks.examples.fashion_nine`` to classify the
Fashion-MNIST test images, ``--batch`` per call, one call after the other, with one thread. There are three phases of
``--seconds`` each: on an idle machine, next to ``--busy`` processes that only compute, and idle again. They run first
with the most accurate configuration, then with a governor. The limit is a multiple of the latency of the former on the
idle machine. It writes ``results/governor.json`` and ``docs/governor.md``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.examples import fashion_mnist, fashion_nine
from dyce_runtime import Session, load
from dyce_runtime.control.governor import LatencyGovernor
from dyce_runtime.inputs.datasets import open_dataset

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "governor.json"
PAGE = HERE.parent / "docs" / "governor.md"
PICTURES = 2000
# The latency limit, relative to the 95 % quantile of the most accurate configuration on the idle machine.
LIMIT = 1.5


def compute() -> None:
    """Compete for the processor: do arithmetic on more memory than the caches hold, until the process is terminated."""
    numbers = np.ones(4_000_000, np.float32)
    while True:
        np.sqrt(numbers, out=numbers)


@contextmanager
def competing(processes: int) -> Iterator[None]:
    """Run competing processes while the context is open."""
    running = [multiprocessing.get_context("spawn").Process(target=compute, daemon=True) for _ in range(processes)]
    for process in running:
        process.start()
    time.sleep(2 if running else 0)
    try:
        yield
    finally:
        for process in running:
            process.terminate()
            process.join()


class Stream:
    """Runs a session on the test images over and over again, ``batch`` of them per call."""

    def __init__(self, session: Session, data: Path, batch: int) -> None:
        pictures = open_dataset(f"{data}#test")
        rows = np.arange(min(PICTURES, len(pictures)) // batch * batch)
        images = session.preprocess(pictures.images(rows))
        assert pictures.labels is not None
        self.session = session
        self.calls = cycle(
            zip(np.split(images, len(rows) // batch), pictures.labels[rows].reshape(-1, batch), strict=True)
        )

    def run(self, seconds: float, limit_ms: float | None = None) -> dict[str, Any]:
        """Run one phase, and return its latencies, accuracy and the configurations that were active.

        Args:
            seconds: duration of the phase.
            limit_ms: latency limit, to count the calls that exceed it.
        """
        start, took, right, names = time.perf_counter(), [], [], []
        while (now := time.perf_counter()) - start < seconds:
            images, labels = next(self.calls)
            result = self.session(images)
            took.append((now - start, time.perf_counter() - now))
            right.append((result.label == labels).mean())
            names.append(result.configuration.name)
        began, latency = np.array(took).T
        settled = began > seconds / 2
        return {
            "calls": len(latency),
            "p50_ms": float(np.percentile(latency, 50) * 1e3),
            "p95_ms": float(np.percentile(latency, 95) * 1e3),
            "settled_p95_ms": float(np.percentile(latency[settled], 95) * 1e3),
            "over_limit": None if limit_ms is None else float((latency * 1e3 > limit_ms).mean()),
            "accuracy": float(np.mean(right)),
            "switches": sum(a != b for a, b in pairwise(names)),
            "configurations": {name: names.count(name) / len(names) for name in dict.fromkeys(names)},
        }


def phases(stream: Stream, seconds: float, busy: int, limit_ms: float) -> dict[str, dict[str, Any]]:
    """Run the three phases: idle, with a competing load, and idle again."""
    found = {}
    for name, processes in (("idle", 0), ("load", busy), ("idle again", 0)):
        with competing(processes):
            found[name] = stream.run(seconds, limit_ms)
    return found


def measure(seconds: float, busy: int, batch: int, p95_ms: float | None, data: Path) -> dict[str, Any]:
    with load(fashion_nine.BUNDLE, threads=1) as session, ExitStack() as stack:
        stream = Stream(session, data, batch)
        # A governor starts with the most accurate configuration, which stays active when it is closed at once.
        LatencyGovernor(session, 1e6, batch=batch).close()
        stream.run(min(seconds, 2))
        idle = stream.run(min(seconds, 10))
        limit = p95_ms or LIMIT * idle["p95_ms"]
        fixed = phases(stream, seconds, busy, limit)
        governor = stack.enter_context(LatencyGovernor(session, limit, batch=batch))
        governed = phases(stream, seconds, busy, limit)
        state = governor.state
    return {
        "limit_ms": limit,
        "seconds": seconds,
        "busy": busy,
        "batch": batch,
        "without": fixed,
        "with": governed,
        "state": state,
    }


def page(results: dict[str, Any]) -> str:
    """Return the text of ``docs/governor.md``."""
    facts = machine.sentence(results["environment"])
    busy = f"{results['busy']} busy process{'es' if results['busy'] > 1 else ''}"
    lines = [
        "# What a governor does while something else takes the processor",
        "",
        "`LatencyGovernor(session, p95_ms)` turns the knob of a session so that 95 % of its calls stay under a limit, as "
        "accurately as that allows. Here a session classifies the Fashion-MNIST test pictures with the bundle of nine "
        f"exits, {results['batch']} per call, one call after the other, one thread: {results['seconds']:g} s on an idle machine, "
        f"as long next to {busy} of another program, and idle again. *Without* a governor the most accurate configuration "
        f"is active throughout. The limit is {results['limit_ms']:.2f} ms. Made by `python -m benchmarks.governor`; {facts}.",
        "",
        "| governor | phase | median, ms | 95 % quantile, ms | the same in the second half | calls over the limit | accuracy | calls per second | switches |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in ("without", "with"):
        lines += [
            f"| {name} | {phase} | {row['p50_ms']:.2f} | {row['p95_ms']:.2f} | {row['settled_p95_ms']:.2f} | "
            f"{row['over_limit']:.1%} | {row['accuracy']:.2%} | {row['calls'] / results['seconds']:.0f} | {row['switches']} |"
            for phase, row in results[name].items()
        ]
    lines += [
        "",
        "The configurations that answered, with the governor, by their cost (`front 0.449`: 0.449 of the full model):",
        "",
    ]
    for phase, row in results["with"].items():
        shares = sorted(row["configurations"].items(), key=lambda item: -item[1])
        lines.append(f"- {phase}: " + ", ".join(f"{name} {share:.0%}" for name, share in shares if share >= 0.005))
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=fashion_mnist.DEBIAN, help="folder with the four IDX files")
    parser.add_argument("--seconds", type=float, default=60, help="of each phase")
    parser.add_argument("--busy", type=int, default=os.cpu_count(), help="processes that compete")
    parser.add_argument("--batch", type=int, default=8, help="pictures per call")
    parser.add_argument("--p95-ms", type=float, help="the limit; otherwise it is chosen after a look at the machine")
    options = parser.parse_args()
    results = {
        "environment": machine.describe("onnxruntime", "numpy"),
        **measure(options.seconds, options.busy, options.batch, options.p95_ms, options.data),
    }
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    PAGE.write_text(page(results))


if __name__ == "__main__":
    main()
