"""Compare eight threads that share a session with eight callers one after another: throughput, and equal results.

``python -m benchmarks.serving`` uses the Fashion-MNIST bundle of ``python -m benchmarks.savings`` and writes
``results/serving.json`` and ``docs/serving.md``.
"""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.examples import fashion_mnist, fashion_nine
from dyce_runtime import load
from dyce_runtime.inputs.datasets import open_dataset

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "serving.json"
PAGE = HERE.parent / "docs" / "serving.md"
CALLERS, CALLS, ROUNDS = 8, 250, 5


def measure(threads: int) -> dict[str, Any]:
    """Measure the calls per second of both ways in turn, and count the results that differ."""
    data = open_dataset(f"{fashion_mnist.DEBIAN}#test")
    with load(fashion_nine.CACHE / f"spans_{threads}.dyce", threads=threads) as session:
        session.use([name for name in session.bundle.configurations.named if name.startswith("milliseconds")][-1])
        images = session.preprocess(data.images(range(CALLERS * CALLS)))

        def caller(number: int) -> list[tuple[int, int, float]]:
            found = []
            for row in range(number * CALLS, (number + 1) * CALLS):
                result = session(images[row : row + 1])
                found.append((int(result.label[0]), int(result.exit[0]), float(result.confidence[0])))
            return found

        seconds: dict[str, list[float]] = {"one after another": [], "at once": []}
        answers: dict[str, Any] = {}
        with ThreadPoolExecutor(CALLERS) as pool:
            for _ in range(ROUNDS):
                for way, run in (("one after another", map), ("at once", pool.map)):
                    start = time.perf_counter()
                    answers[way] = list(run(caller, range(CALLERS)))
                    seconds[way].append(time.perf_counter() - start)
    first, second = (np.array(answers[way]).reshape(-1, 3) for way in seconds)
    return {
        **{way: CALLERS * CALLS / median(found) for way, found in seconds.items()},
        "ratio": median(a / b for a, b in zip(*seconds.values(), strict=True)),
        "other_answers": int((first != second).any(axis=1).sum()),
    }


def main() -> None:
    results: dict[str, Any] = {"environment": machine.describe("onnxruntime", "numpy"), "threads": {}}
    for threads in (1, 2):
        results["threads"][threads] = machine.apart(measure, threads)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    lines = [
        "# Eight callers that share a session",
        "",
        f"{CALLERS} callers classify {CALLS} Fashion-MNIST test pictures each, one per call, one caller after another or all "
        f"at once in {CALLERS} threads; medians of {ROUNDS} rounds of both in turn. Made by `python -m benchmarks.serving`; "
        f"{machine.sentence(results['environment'])}.",
        "",
        "| threads per call | one after another, calls/s | at once, calls/s | at once : one after another | other answers |",
        "|---|---|---|---|---|",
        *(
            f"| {threads} | {found['one after another']:.0f} | {found['at once']:.0f} | {found['ratio']:.2f} | "
            f"{found['other_answers']} |"
            for threads, found in results["threads"].items()
        ),
    ]
    PAGE.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
