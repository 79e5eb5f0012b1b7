"""Make search problems that are small enough for brute force, and solve them by brute force, to check the searches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from dyce_calibration.records import Records
from dyce_calibration.search.costs import CostTable
from dyce_calibration.search.problem import Position, Problem, make_problem
from dyce_runtime.bundle.manifest import FINAL

CLASSES = 5


def make_small(
    seed: int, positions: int = 3, types: int = 2, samples: int = 40, grid: int = 100, *, gates: bool = False
) -> Problem:
    """Make a problem from random records and costs.

    Scores are higher where a head is right. They lie on a grid, so that some of them are equal.

    Args:
        types: number of head types at every position.
        grid: number of steps between scores of 0 and 1.
        gates: make losses multiples of 1/4, and let every sample pay its own fraction of the backbone.
    """
    random = np.random.default_rng(seed)
    labels = random.integers(0, CLASSES, samples)
    exits = [str(position + 1) for position in range(positions)]
    heads = tuple((exit, f"type{t}") for exit in exits for t in range(types))
    quality = [0.5 + 0.4 * (column // types) / positions for column in range(len(heads))] + [0.9]
    right = random.random((samples, len(quality))) < quality
    sure = 0.5 * random.beta(3, 2, right.shape) + 0.4 * right * random.random(right.shape)
    records = Records.of_single_label(
        heads,
        np.where(right, labels[:, None], (labels[:, None] + 1) % CLASSES),
        (np.round(sure * grid) / grid).astype(np.float32),
        labels,
        np.arange(samples, dtype=np.uint64),
        np.full(samples, "search"),
    )
    if gates:
        loss = np.where(right, random.integers(0, 2, right.shape), random.integers(2, 5, right.shape)) / 4
        share = np.repeat(random.random((samples, positions + 1)), [types] * positions + [1], axis=1)
        records = replace(records, loss=loss.astype(np.float32), cost=share.astype(np.float32))
    backbone = dict(zip(exits, np.sort(random.random(positions)).tolist(), strict=True))
    of_heads = {exit: {f"type{t}": float(random.random()) * 0.05 for t in range(types)} for exit in exits}
    # The segments together cost more than the uncut model.
    return make_problem(records, CostTable("macs", {**backbone, FINAL: 1.02}, of_heads, 1.0))


def objective(problem: Problem, weight: float, gain: Any, cost: Any) -> Any:
    """Return DyCE's weighted objective of a setting, or of an array of settings.

    Args:
        gain: summed over the samples.
        cost: per sample.
    """
    return weight * (1 - gain / max(problem.full_gain, 1)) + (1 - weight) * cost


def every_setting(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Return gain and cost per sample of all settings that differ in effect: every head with every threshold.

    The implementation shares no code with the searches. Position by position, it combines all prefixes of settings with
    all choices. The first setting has all exits off.
    """
    remaining = np.ones((1, len(problem)), np.bool_)
    gain, paid, heads = np.zeros(1, np.int64), np.zeros(1), np.zeros(1)
    for position in problem.positions:
        leave, gains, head = _choices(position, len(problem))
        exiting = remaining[:, None] & leave
        heads = np.add.outer(heads, head)
        gain = (gain[:, None] + (exiting * gains).sum(axis=-1)).ravel()
        paid = (paid[:, None] + exiting @ _each(position, problem) + np.count_nonzero(exiting, axis=-1) * heads).ravel()
        remaining, heads = (remaining[:, None] & ~leave).reshape(-1, len(problem)), heads.ravel()
    gain += remaining @ problem.full.gain.astype(np.int64)
    end = _each(problem.final, problem)
    paid += remaining @ end + np.count_nonzero(remaining, axis=-1) * heads
    # With all exits off the uncut model runs, unless gates skip parts of it.
    paid[0] = len(problem) if problem.final.share is None else end.sum()
    return gain, paid / len(problem)


def _each(position: Position, problem: Problem) -> np.ndarray:
    """Return what every sample (N,) pays for the backbone up to a position."""
    return position.cost * (np.ones(len(problem)) if position.share is None else position.share)


def _choices(position: Position, samples: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the choices at a position, of which the first is off.

    Returns:
        the samples that would exit, and their gains, both (choices, samples); and the cost of the head (choices,).
    """
    choices = [(np.zeros(samples, np.bool_), np.zeros(samples, np.int64), 0.0)]
    for head in position.heads:
        # A threshold of the highest score or more has no effect but the cost of the head, so it is left out.
        thresholds = [0, *np.unique(head.score)[:-1]]
        choices += [(head.score > threshold, head.gain.astype(np.int64), head.cost) for threshold in thresholds]
    leave, gains, cost = map(np.array, zip(*choices, strict=True))
    return leave, gains, cost
