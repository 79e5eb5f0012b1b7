"""From latencies and answers to the figures of a benchmark, and to a sentence that says what they mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from dyce_runtime.configuration import FULL, Configuration
from dyce_runtime.manifest import Manifest
from dyce_runtime.plan import path_macs

_ROUNDS = 10
# What a configuration has to gain before the benchmark says so; less is within the noise of a shared machine.
_NOTABLE = 0.03


@dataclass(frozen=True)
class Timings:
    """Latencies and answers of one contender.

    Attributes:
        seconds: (calls,) wall-clock time of each call of a whole batch.
        labels: (N,) int64.
        exits: (N,) int64, index into the manifest's exits; None for what knows no exits.
    """

    seconds: NDArray[np.float64]
    labels: NDArray[np.int64]
    exits: NDArray[np.int64] | None


def figures(timing: Timings, labels: NDArray[np.int64] | None, batch: int) -> dict[str, Any]:
    """What there is to say of any contender by itself."""
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
    """What there is to say of a contender next to the uncut model: the median ratio over rounds of calls."""
    rounds = min(_ROUNDS, len(timing.seconds))
    ratio = np.median(
        [
            mine.sum() / theirs.sum()
            for mine, theirs in zip(
                np.array_split(timing.seconds, rounds), np.array_split(uncut.seconds, rounds), strict=True
            )
        ]
    )
    return {
        "time_ratio_to_uncut": float(ratio),
        "same_label_as_uncut": float((timing.labels == uncut.labels).mean()),
    }


def early_exit(manifest: Manifest, configuration: Configuration, timing: Timings, uncut: Timings) -> dict[str, Any]:
    """What there is to say of a configuration: where samples left, and what that saved."""
    assert timing.exits is not None
    shares = np.bincount(timing.exits, minlength=len(manifest.exits)) / len(timing.exits)
    macs = float(shares @ path_macs(manifest, configuration)) / manifest.model.macs
    compared = beside_uncut(timing, uncut)
    return {
        "exits": msgspec.to_builtins(configuration.exits),
        "share_per_exit": {exit.id: float(share) for exit, share in zip(manifest.exits, shares, strict=True)},
        "macs_share": macs,
        "macs_saved": 1 - macs,
        **compared,
        "time_saved": 1 - compared["time_ratio_to_uncut"],
    }


def verdict(entries: Sequence[Mapping[str, Any]], manifest: Manifest, batch: int) -> str:
    """What early exit gains on this machine, in a sentence."""
    if not entries:
        return "Only the uncut model was measured; nothing can be said about early exit."
    rivals = [e for e in entries if e["exits"]]
    if not rivals:
        return f"Only the {FULL} model was measured; nothing can be said about early exit."
    best = min(rivals, key=lambda e: float(e["time_ratio_to_uncut"]))
    name, ratio, macs = best["name"], best["time_ratio_to_uncut"], best["macs_share"]
    calls = f"With {batch} picture{'' if batch == 1 else 's'} per call early exit"
    untrained = " The heads are untrained: only the speed means anything." if manifest.heads == "untrained" else ""
    if ratio >= 1 + _NOTABLE:
        return (
            f"{calls} loses: the best configuration, {name}, takes {ratio:.2f} times as long as the uncut model, at "
            f"{macs:.0%} of its MACs.{untrained}"
        )
    if ratio > 1 - _NOTABLE:
        return (
            f"{calls} gains nothing worth naming: {name} takes {ratio:.2f} of the uncut model's time, at {macs:.0%} "
            f"of its MACs.{untrained}"
        )
    return f"{calls} gains: {name} takes {ratio:.0%} of the uncut model's time and {macs:.0%} of its MACs.{untrained}"
