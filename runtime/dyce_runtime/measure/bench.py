"""Benchmark the uncut model and configurations in turn, on the same inputs in one run."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from typing import Any, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from dyce_runtime.bundle.arrays import read_splits
from dyce_runtime.bundle.configuration import Configuration, ExitSetting, settings_of
from dyce_runtime.bundle.measured import Benched, BenchFigures, write_benched
from dyce_runtime.bundle.reader import Bundle
from dyce_runtime.errors import DataError
from dyce_runtime.execution.session import Session
from dyce_runtime.inputs.datasets import Dataset
from dyce_runtime.inputs.images import all_of
from dyce_runtime.measure.bench_energy import add_energies
from dyce_runtime.measure.bench_figures import Timings, beside_uncut, early_exit, figures
from dyce_runtime.measure.bench_loss import Answers, Pictures, answer_all, loss_of
from dyce_runtime.measure.bench_verdict import verdict
from dyce_runtime.measure.contenders import Answer, Contender, make_contenders
from dyce_runtime.measure.energy import Meter
from dyce_runtime.measure.footprint import footprint
from dyce_runtime.measure.machine_state import power_mode

# Stands for every named configuration and the whole front.
ALL = "all"
_WARM_UP_CALLS = 5
# The most samples that are timed, and the most that are classified: it takes more to detect a loss of half a point.
MOST_TIMED = 1000
MOST_ANSWERED = 10_000
# Splits that neither the heads nor the thresholds of a bundle were fitted on.
_UNUSED_SPLITS = ("certification", "test", "unseen")

_Track: TypeAlias = Callable[[Iterable[int]], Iterable[int]]


def benchmark(
    session: Session,
    data: Dataset,
    configurations: Sequence[str | Configuration],
    *,
    batch: int | Sequence[int] = 1,
    limit: int = MOST_ANSWERED,
    chain: bool = True,
    find_meter: Callable[[], Meter] | None = None,
    progress: _Track = lambda calls: calls,
) -> dict[str, Any]:
    """Measure configurations next to the uncut model and return the ``bench`` document (see the reference).

    Each batch is run by the uncut model, by the chain of all segments and by every configuration before the next batch,
    in rotating order, so that a drift of the machine affects all alike. Preprocessing is not timed. At most 1,000
    samples, or one batch, are timed. With labels, the other samples are classified as well, by all configurations in
    one pass, since a small loss of accuracy is detectable only with many samples. The active configuration is restored
    at the end.

    Args:
        session: an open session.
        data: the images, with or without labels.
        configurations: names or configurations; without any, only the uncut model and the chain are measured.
        batch: samples per call, or several such sizes, of which the first is the one whose figures are stored.
        limit: the most samples to use, evenly spread over the data.
        chain: whether to measure the chain of all segments as well.
        find_meter: returns the meter to measure energy with, after all timing; see ``dyce_runtime.measure.energy``.
        progress: wraps an iterable of calls, to show progress.

    Raises:
        ConfigurationError: a configuration does not fit the bundle.
        DataError: there are fewer samples than one batch.
        PieceError: a piece failed.
    """
    rows = spread_rows(data, limit)
    sizes = [batch] if isinstance(batch, int) else list(batch)
    check_batches(sizes, len(rows))
    timed, rest = _timed_and_rest(rows, max(MOST_TIMED, *sizes))
    if data.labels is None or not configurations:
        rest = rest[:0]
    rows = np.concatenate([timed, rest])
    resolved = [session.bundle.configuration(c) if isinstance(c, str) else c for c in configurations]
    pictures = Pictures(
        None if data.labels is None else data.labels[rows], session.manifest.model.class_names or data.class_names
    )
    splits = split_counts(session, data, rows)
    used = sum(count for name, count in splits.items() if name not in _UNUSED_SPLITS)
    before = session.configuration
    try:
        contenders = make_contenders(session, resolved, chain=chain)
        # The chain computes the same as the uncut model, which the export verified.
        uncut, answers = answer_all(session, data, rest, resolved, progress)
        further = [Answers(uncut, np.empty(0, np.int64))] * (1 + chain) + answers
        parts = []
        for size in sizes:
            found = _measure(session, data, timed, contenders, size, progress)
            found = [_with_further(*both) for both in zip(found, further, strict=True)]
            segments = found.pop(1) if chain else None
            parts.append(_part(session.bundle, resolved, size, pictures, used, segments, found))
        contenders = make_contenders(session, resolved, chain=False)
        meter = add_energies(session, data, timed, contenders, parts, find_meter)
    finally:
        session.use(before)
    return {
        "environment": environment(session),
        "memory": footprint(session),
        "meter": meter,
        "samples": len(rows),
        "timed_samples": len(timed),
        "splits": splits,
        **parts[0],
        "batches": parts,
    }


def _timed_and_rest(rows: NDArray[np.int64], most: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Divide samples into those that are timed, at most ``most`` and evenly spread, and the others."""
    chosen = spread_rows(rows, most)
    return rows[chosen], np.delete(rows, chosen)


def _with_further(timed: Timings, further: Answers) -> Timings:
    """Append the answers to further samples, which were not timed."""
    exits = None if timed.exits is None else np.concatenate([timed.exits, further.exits])
    return Timings(timed.seconds, np.concatenate([timed.labels, further.labels]), exits)


def choose(bundle: Bundle, names: Sequence[str]) -> list[Configuration]:
    """Look up configurations by name. ``all`` stands for every named one and those of the front that have no name.

    The latter are named after their position in the front, counted from 1: ``front 3``.

    Raises:
        ConfigurationError: there is no configuration of that name.
    """
    known = bundle.configurations
    chosen: dict[str, Configuration] = {}
    for name in names:
        if name != ALL:
            chosen[name] = bundle.configuration(name)
            continue
        chosen |= {name: bundle.configuration(name) for name in known.named}
        for place, entry in enumerate(known.front, 1):
            if all(settings_of(entry) != settings_of(named) for named in known.named.values()):
                chosen[f"front {place}"] = entry.configuration(f"front {place}")
    return list(chosen.values())


def spread_rows(data: Sized, limit: int) -> NDArray[np.int64]:
    """Return the indices (n,) int64 of at most ``limit`` samples, evenly spread over the data."""
    return np.unique(np.linspace(0, len(data) - 1, min(limit, len(data))).astype(int))


def check_batches(sizes: Iterable[int], pictures: int) -> None:
    """Raise DataError if a batch size is larger than the number of images."""
    if (largest := max(sizes)) > pictures:
        raise DataError(
            f"there are {pictures} pictures for --batch {largest}; expected one batch at the least",
            hint="Give more pictures, a higher --limit or smaller batches.",
        )


def save_figures(bundle: Bundle, document: Mapping[str, Any]) -> None:
    """Store the figures of a benchmark's configurations in the user's cache.

    If several batch sizes were measured, the figures of the first one are stored.

    Args:
        bundle: the bundle.
        document: as :func:`benchmark` returns it.

    Raises:
        DestinationError: the user's cache cannot be written.
    """
    machine = {key: document["environment"][key] for key in ("target", "threads", "cpu", "date")}
    found = [
        Benched(
            msgspec.convert(one["exits"], dict[str, ExitSetting]),
            msgspec.convert(one["gates"], dict[str, tuple[float, ...] | int]),
            BenchFigures(
                p50_ms=one["p50_ms"],
                p90_ms=one["p90_ms"],
                time_ratio=one["time_ratio_to_uncut"],
                time_ratio_range=tuple(one["time_ratio_range"]),
                accuracy=one["accuracy"],
                loss=one["loss"],
                loss_error=one["loss_error"],
                samples=document["samples"],
                unseen=document["splits"]["unseen"],
                batch=document["batch"],
                **machine,
            ),
        )
        for one in document["configurations"]
    ]
    write_benched(bundle, found)


def environment(session: Session) -> dict[str, str]:
    """Describe the machine, the versions and the options of a measurement."""
    return {
        "cpu": cpu_name(),
        "cores": str(os.cpu_count()),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "target": session.target.name,
        "engine": session.target.version(),
        "precision": session.manifest.precision,
        "threads": str(session.spec.threads or "default"),
        "pool": session.spec.pool,
        **power_mode(),
        "date": time.strftime("%Y-%m-%d"),
    }


def split_counts(session: Session, data: Dataset, rows: NDArray[np.int64]) -> dict[str, int]:
    """Count the samples that belong to each split of the bundle, and those in none of them (``unseen``)."""
    hashes = data.take(rows).hashes  # reads these files only
    counts = {name: int(np.isin(hashes, known).sum()) for name, known in read_splits(session.bundle).items()}
    counts = {name: count for name, count in counts.items() if count}
    return {**counts, "unseen": len(rows) - sum(counts.values())}


def _measure(
    session: Session,
    data: Dataset,
    rows: NDArray[np.int64],
    contenders: Sequence[Contender],
    batch: int,
    progress: _Track,
) -> list[Timings]:
    """Measure all contenders; return their timings in order. An incomplete last batch is classified but not timed."""
    seconds: list[list[float]] = [[] for _ in contenders]
    answers: list[list[Answer]] = [[] for _ in contenders]
    starts = list(range(0, len(rows), batch))
    for turn in progress(range(-_WARM_UP_CALLS, len(starts))):
        start = starts[max(turn, 0)]
        images = all_of(session.preprocess(data.images(rows[start : start + batch])))
        for shift in range(len(contenders)):
            index = (turn + shift) % len(contenders)
            configuration, run = contenders[index]
            if configuration is not None:
                session.use(configuration)
            begin = time.perf_counter()
            answer = run(images)
            elapsed = time.perf_counter() - begin
            if turn >= 0:
                seconds[index] += [elapsed] if start + batch <= len(rows) else []
                answers[index].append(answer)
    return [_timings(*found) for found in zip(seconds, answers, strict=True)]


def _timings(seconds: Sequence[float], answers: Sequence[Answer]) -> Timings:
    exits = [exit for _, exit in answers if exit is not None]
    labels = np.concatenate([label for label, _ in answers])
    return Timings(np.array(seconds), labels, np.concatenate(exits) if exits else None)


def _part(
    bundle: Bundle,
    configurations: Sequence[Configuration],
    batch: int,
    pictures: Pictures,
    used: int,
    chain: Timings | None,
    timings: Sequence[Timings],
) -> dict[str, Any]:
    """Return the part of the document for one batch size. The first timings are those of the uncut model."""
    uncut, *others = timings
    labels, names = pictures
    entries = [
        {
            "name": configuration.name,
            **figures(timing, labels, batch),
            "joules_per_sample": None,
            **loss_of(timing.labels, uncut.labels, labels, bundle.configurations.allowed_loss(configuration), names),
            **early_exit(bundle.manifest, configuration, timing, uncut),
        }
        for configuration, timing in zip(configurations, others, strict=True)
    ]
    return {
        "batch": batch,
        "uncut": {**figures(uncut, labels, batch), "joules_per_sample": None},
        "chain": None if chain is None else {**figures(chain, labels, batch), **beside_uncut(chain, uncut)},
        "configurations": entries,
        "verdict": verdict(entries, bundle.manifest, batch, len(uncut.labels), used),
    }


def cpu_name() -> str:
    """Return the name of the processor, as the system reports it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith(("model name", "Model")):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
