"""Compute the figures of a benchmark from latencies and answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from dyce_runtime.bundle.configuration import Configuration
from dyce_runtime.bundle.manifest import Manifest
from dyce_runtime.execution.plan import path_macs

_ROUNDS = 10


@dataclass(frozen=True)
class Timings:
    """Latencies and answers of one contender.

    Attributes:
        seconds: (calls,) float64, wall-clock time of each call with a full batch.
        labels: (N,) int64, predictions for the samples that were timed, followed by those that were only classified.
        exits: (N,) int64, index of the exit taken in the manifest's exits; None for a contender without exits.
    """

    seconds: NDArray[np.float64]
    labels: NDArray[np.int64]
    exits: NDArray[np.int64] | None


def figures(timing: Timings, labels: NDArray[np.int64] | None, batch: int) -> dict[str, Any]:
    """Return the figures of a single contender: latencies in ms, samples per second, and accuracy (None: no labels)."""
    p50, p90, p99 = np.percentile(timing.seconds, [50, 90, 99]) * 1e3
    return {
        "mean_ms": float(timing.seconds.mean() * 1e3),
        "p50_ms": float(p50),
        "p90_ms": float(p90),
        "p99_ms": float(p99),
        "throughput": float(batch * len(timing.seconds) / timing.seconds.sum()),
        "accuracy": None if labels is None else float((timing.labels == labels).mean()),
    }


def beside_uncut(timing: Timings, uncut: Timings) -> dict[str, Any]:
    """Compare a contender with the uncut model: the median ratio of times over rounds of calls, and equal labels.

    The range goes from the second smallest to the second largest of ten rounds, between which the true median lies with
    a probability of 97.9 %, whatever the distribution; with fewer rounds, from the smallest to the largest.
    """
    rounds = min(_ROUNDS, len(timing.seconds))
    parts = (np.array_split(one.seconds, rounds) for one in (timing, uncut))
    ratios = sorted(float(mine.sum() / theirs.sum()) for mine, theirs in zip(*parts, strict=True))
    inner = int(rounds == _ROUNDS)
    return {
        "time_ratio_to_uncut": float(np.median(ratios)),
        "time_ratio_range": [ratios[inner], ratios[-1 - inner]],
        "same_label_as_uncut": float((timing.labels == uncut.labels).mean()),
    }


def early_exit(manifest: Manifest, configuration: Configuration, timing: Timings, uncut: Timings) -> dict[str, Any]:
    """Return the figures of early exit for a configuration: the exits taken, and the savings of work and time."""
    assert timing.exits is not None
    shares = np.bincount(timing.exits, minlength=len(manifest.exits)) / len(timing.exits)
    macs = float(shares @ path_macs(manifest, configuration)) / manifest.model.macs
    compared = beside_uncut(timing, uncut)
    return {
        "exits": msgspec.to_builtins(configuration.exits),
        "gates": msgspec.to_builtins(configuration.gates),
        "share_per_exit": {exit.id: float(share) for exit, share in zip(manifest.exits, shares, strict=True)},
        "macs_share": macs,
        "macs_saved": 1 - macs,
        **compared,
        "time_saved": 1 - compared["time_ratio_to_uncut"],
    }
