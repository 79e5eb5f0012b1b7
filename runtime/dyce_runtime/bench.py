"""Benchmark: the uncut model and every configuration, in turn, on the same inputs in one run."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dyce_runtime.bundle import SPLITS, Bundle, open_bundle, write_configurations
from dyce_runtime.configuration import FULL, BenchFigures, Configuration, Entry
from dyce_runtime.datasets import Dataset
from dyce_runtime.manifest import Manifest
from dyce_runtime.preprocessing import preprocess
from dyce_runtime.session import Session

_WARM_UP_CALLS = 5
_ROUNDS = 10
# What a configuration has to gain before the benchmark says so; less is within the noise of a shared machine.
_NOTABLE = 0.03


@dataclass(frozen=True)
class Timings:
    """Latencies and answers of one contender.

    Attributes:
        seconds: (calls,) wall-clock time of each call.
        labels: (N,) int64.
        exits: (N,) int64, index into the manifest's exits; None for the uncut model.
    """

    seconds: NDArray[np.float64]
    labels: NDArray[np.int64]
    exits: NDArray[np.int64] | None


def benchmark(
    session: Session,
    data: Dataset,
    configurations: Sequence[str | Configuration],
    *,
    batch: int = 1,
    limit: int = 1000,
    progress: Callable[[Iterable[int]], Iterable[int]] = lambda calls: calls,
) -> dict[str, object]:
    """Measure configurations next to the uncut model and return the ``bench`` document (see the reference).

    Every call goes to the uncut model and to every configuration before the next one, in rotating order, so that a
    drift of the machine hits all alike. Preprocessing is not timed. The knob is left as it was found.

    Args:
        batch: samples per call.
        limit: at most that many samples, evenly spread over the data.
    """
    rows = np.unique(np.linspace(0, len(data) - 1, min(limit, len(data))).astype(int))
    before = session.configuration
    resolved = [session.bundle.configuration(c) if isinstance(c, str) else c for c in configurations]
    try:
        uncut, timings = _measure(session, data, rows, resolved, batch, progress)
    finally:
        session.use(before)
    labels = None if data.labels is None else data.labels[rows]
    base = _figures(uncut, labels, batch)
    entries = [
        {
            "name": configuration.name,
            **_figures(timing, labels, batch),
            **_early_exit(session.manifest, configuration, timing, uncut),
        }
        for configuration, timing in zip(resolved, timings, strict=True)
    ]
    return {
        "environment": environment(session),
        "samples": len(rows),
        "batch": batch,
        "splits": split_counts(session, data, rows),
        "uncut": base,
        "configurations": entries,
        "verdict": _verdict(entries, session.manifest),
    }


def save_figures(bundle: Bundle, document: Mapping[str, Any]) -> None:
    """Store what :func:`benchmark` found of named configurations with these configurations.

    Args:
        document: as :func:`benchmark` returns it.

    Raises:
        DestinationError: the bundle cannot be written.
    """
    machine = {key: document["environment"][key] for key in ("target", "threads", "cpu", "date")}
    measured = [
        Entry(
            bundle.configuration(found["name"]).exits,
            bench=BenchFigures(
                p50_ms=found["p50_ms"],
                p90_ms=found["p90_ms"],
                time_ratio=found["time_ratio_to_uncut"],
                accuracy=found["accuracy"],
                samples=document["samples"],
                unseen=document["splits"]["unseen"],
                batch=document["batch"],
                **machine,
            ),
        )
        for found in document["configurations"]
    ]
    # Read again: a search may have been quicker than the benchmark, and what it chose must stay.
    current = open_bundle(bundle.path, check_hashes=False).configurations
    write_configurations(current.with_bench(measured), bundle.path)


def path_macs(manifest: Manifest, configuration: Configuration) -> NDArray[np.float64]:
    """(exits,) multiply-accumulates that a sample pays if it leaves at each exit, heads on the way included."""
    paid, total = 0, []
    segments = [piece for piece in manifest.pieces if piece.kind == "segment"]
    for exit, segment in zip(manifest.exits, segments, strict=True):
        paid += segment.macs
        if exit.id in configuration.exits:
            head = next(h for h in exit.heads if h.type == configuration.exits[exit.id].head)
            paid += manifest.piece(head.piece).macs
        total.append(paid)
    return np.array(total, np.float64)


def environment(session: Session) -> dict[str, str]:
    """The machine and the versions that a measurement belongs to."""
    return {
        "cpu": cpu_name(),
        "cores": str(os.cpu_count()),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "target": session.target.name,
        "engine": _version(session.target.name),
        "threads": str(session.spec.threads or "default"),
        "pool": session.spec.pool,
        "date": time.strftime("%Y-%m-%d"),
    }


def split_counts(session: Session, data: Dataset, rows: NDArray[np.int64]) -> dict[str, int]:
    """How many of the samples took part in making the bundle, by split, and how many it has ``unseen``."""
    path = session.bundle.file(SPLITS)
    hashes = data.hashes[rows]
    counts = {}
    if path.is_file():
        with np.load(path) as file:
            counts = {name: int(np.isin(hashes, file[name]).sum()) for name in file.files}
    counts = {name: count for name, count in counts.items() if count}
    return {**counts, "unseen": len(rows) - sum(counts.values())}


def _measure(
    session: Session,
    data: Dataset,
    rows: NDArray[np.int64],
    configurations: Sequence[Configuration],
    batch: int,
    progress: Callable[[Iterable[int]], Iterable[int]],
) -> tuple[Timings, list[Timings]]:
    contenders = [None, *configurations]
    seconds: list[list[float]] = [[] for _ in contenders]
    labels: list[list[NDArray[np.int64]]] = [[] for _ in contenders]
    exits: list[list[NDArray[np.int64]]] = [[] for _ in contenders]
    starts = list(range(0, len(rows), batch))
    for turn in progress(range(-_WARM_UP_CALLS, len(starts))):
        start = starts[max(turn, 0)]
        images = preprocess(data.images(rows[start : start + batch]), session.manifest.preprocessing)
        for shift in range(len(contenders)):
            index = (turn + shift) % len(contenders)
            if (configuration := contenders[index]) is not None:
                session.use(configuration)
            begin = time.perf_counter()
            if configuration is None:
                label, exit = session.run_uncut(images), None
            else:
                result = session(images)
                label, exit = result.label, result.exit
            elapsed = time.perf_counter() - begin
            if turn >= 0:
                seconds[index].append(elapsed)
                labels[index].append(label)
                exits[index] += [exit] if exit is not None else []
    made = [
        Timings(np.array(s), np.concatenate(la), np.concatenate(e) if e else None)
        for s, la, e in zip(seconds, labels, exits, strict=True)
    ]
    return made[0], made[1:]


def _figures(timing: Timings, labels: NDArray[np.int64] | None, batch: int) -> dict[str, object]:
    p50, p90, p99 = np.percentile(timing.seconds, [50, 90, 99]) * 1e3
    return {
        "mean_ms": float(timing.seconds.mean() * 1e3),
        "p50_ms": float(p50),
        "p90_ms": float(p90),
        "p99_ms": float(p99),
        "throughput": float(len(timing.labels) / timing.seconds.sum()),
        "accuracy": None if labels is None else float((timing.labels == labels).mean()),
    }


def _early_exit(manifest: Manifest, configuration: Configuration, timing: Timings, uncut: Timings) -> dict[str, object]:
    assert timing.exits is not None
    shares = np.bincount(timing.exits, minlength=len(manifest.exits)) / len(timing.exits)
    macs = float(shares @ path_macs(manifest, configuration)) / manifest.model.macs
    rounds = min(_ROUNDS, len(timing.seconds))
    ratios = [
        float(mine.sum() / theirs.sum())
        for mine, theirs in zip(
            np.array_split(timing.seconds, rounds), np.array_split(uncut.seconds, rounds), strict=True
        )
    ]
    return {
        "share_per_exit": {exit.id: float(share) for exit, share in zip(manifest.exits, shares, strict=True)},
        "macs_share": macs,
        "time_ratio_to_uncut": float(np.median(ratios)),
        "same_label_as_uncut": float((timing.labels == uncut.labels).mean()),
    }


def _verdict(entries: Sequence[dict[str, object]], manifest: Manifest) -> str:
    """What early exit gains on this machine, in a sentence."""
    rivals = [e for e in entries if e["name"] != FULL]
    if not rivals:
        return "Only the full model was measured; nothing can be said about early exit."
    best = min(rivals, key=lambda e: e["time_ratio_to_uncut"])  # type: ignore[arg-type, return-value]
    ratio, macs = float(best["time_ratio_to_uncut"]), float(best["macs_share"])  # type: ignore[arg-type]
    untrained = " The heads are untrained: only the speed means anything." if manifest.heads == "untrained" else ""
    if ratio >= 1 + _NOTABLE:
        return (
            f"Early exit loses here: the best configuration, {best['name']}, takes {ratio:.2f} times as long as "
            f"the uncut model, at {macs:.0%} of its MACs.{untrained}"
        )
    if ratio > 1 - _NOTABLE:
        return (
            f"Early exit gains nothing worth naming here: {best['name']} takes {ratio:.2f} of the uncut model's "
            f"time, at {macs:.0%} of its MACs.{untrained}"
        )
    return (
        f"Early exit gains here: {best['name']} takes {ratio:.0%} of the uncut model's time and {macs:.0%} of its "
        f"MACs.{untrained}"
    )


def _version(module: str) -> str:
    try:
        return version(module)
    except PackageNotFoundError:  # a module may come from a distribution of another name, such as onnxruntime-gpu
        distributions = packages_distributions().get(module)
        return version(distributions[0]) if distributions else "unknown"


def cpu_name() -> str:
    """The processor as the system names it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith(("model name", "Model")):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
