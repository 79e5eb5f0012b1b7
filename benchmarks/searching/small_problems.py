"""Search problems that are small enough for brute force, and brute force: the measure of every other search."""

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
    """Random records and costs; scores are higher where a head is right, and on a grid, so that some are equal.

    Args:
        gates: losses are quarters, and every sample pays its own share of the backbone.
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
    # The pieces together cost more than the uncut model.
    return make_problem(records, CostTable("macs", {**backbone, FINAL: 1.02}, of_heads, 1.0))


def objective(problem: Problem, weight: float, gain: Any, cost: Any) -> Any:
    """The weighted objective of DyCE, of one setting or of an array of them."""
    return weight * (1 - gain / max(problem.full_gain, 1)) + (1 - weight) * cost


def every_setting(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Gain, and cost per sample, of all settings that differ in what they do: every head, every threshold.

    It shares nothing with the searches: position by position, all prefixes of settings times all choices.
    """
    waiting = np.ones((1, len(problem)), np.bool_)
    gain, paid, heads = np.zeros(1, np.int64), np.zeros(1), np.zeros(1)
    for position in problem.positions:
        leave, gains, head = _choices(position, len(problem))
        leaving = waiting[:, None] & leave
        heads = np.add.outer(heads, head)
        gain = (gain[:, None] + (leaving * gains).sum(axis=-1)).ravel()
        paid = (paid[:, None] + leaving @ _each(position, problem) + np.count_nonzero(leaving, axis=-1) * heads).ravel()
        waiting, heads = (waiting[:, None] & ~leave).reshape(-1, len(problem)), heads.ravel()
    gain += waiting @ problem.full.gain.astype(np.int64)
    end = _each(problem.final, problem)
    paid += waiting @ end + np.count_nonzero(waiting, axis=-1) * heads
    # All exits off: the uncut model, unless gates leave out parts of it.
    paid[0] = len(problem) if problem.final.share is None else end.sum()
    return gain, paid / len(problem)


def _each(position: Position, problem: Problem) -> np.ndarray:
    """(N,) what every sample pays for the backbone up to a position."""
    return position.cost * (np.ones(len(problem)) if position.share is None else position.share)


def _choices(position: Position, samples: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Who would leave and what that gains (choices, samples), and what the head costs; the first choice is off."""
    choices = [(np.zeros(samples, np.bool_), np.zeros(samples, np.int64), 0.0)]
    for head in position.heads:
        # Above the highest score nobody leaves, as if it were off, but the head is paid for.
        thresholds = [0, *np.unique(head.score)[:-1]]
        choices += [(head.score > threshold, head.gain.astype(np.int64), head.cost) for threshold in thresholds]
    leave, gains, cost = map(np.array, zip(*choices, strict=True))
    return leave, gains, cost
