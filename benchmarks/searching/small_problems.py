"""Search problems that are small enough for brute force, and brute force: the measure of every other search."""

from __future__ import annotations

from typing import Any

import numpy as np

from dyce_calibration.records import Records
from dyce_calibration.search.costs import CostTable
from dyce_calibration.search.problem import Position, Problem, make_problem
from dyce_runtime.bundle.manifest import FINAL

CLASSES = 5


def make_small(seed: int, positions: int = 3, types: int = 2, samples: int = 40, grid: int = 100) -> Problem:
    """Random records and costs; confidences are higher where a head is right, and on a grid, so that some are equal."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, CLASSES, samples)
    exits = [str(position + 1) for position in range(positions)]
    heads = tuple((exit, f"type{t}") for exit in exits for t in range(types))
    quality = [0.5 + 0.4 * (column // types) / positions for column in range(len(heads))] + [0.9]
    right = random.random((samples, len(quality))) < quality
    sure = 0.5 * random.beta(3, 2, right.shape) + 0.4 * right * random.random(right.shape)
    records = Records(
        heads,
        np.where(right, labels[:, None], (labels[:, None] + 1) % CLASSES),
        (np.round(sure * grid) / grid).astype(np.float32),
        labels,
        np.arange(samples, dtype=np.uint64),
        np.full(samples, "search"),
    )
    backbone = dict(zip(exits, np.sort(random.random(positions)).tolist(), strict=True))
    of_heads = {exit: {f"type{t}": float(random.random()) * 0.05 for t in range(types)} for exit in exits}
    # The pieces together cost more than the uncut model.
    return make_problem(records, CostTable("macs", {**backbone, FINAL: 1.02}, of_heads, 1.0))


def objective(problem: Problem, weight: float, right: Any, cost: Any) -> Any:
    """The weighted objective of DyCE, of one setting or of an array of them."""
    return weight * (1 - right / max(problem.right, 1)) + (1 - weight) * cost


def every_setting(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Right answers and cost per sample of all settings that differ in what they do: every head, every threshold.

    It shares nothing with the searches: position by position, all prefixes of settings times all choices.
    """
    waiting = np.ones((1, len(problem)), np.bool_)
    right, paid, heads = np.zeros(1, np.int64), np.zeros(1), np.zeros(1)
    for position in problem.positions:
        leave, correct, head = _choices(position, len(problem))
        leaving = waiting[:, None] & leave
        heads = np.add.outer(heads, head)
        right = (right[:, None] + np.count_nonzero(leaving & correct, axis=-1)).ravel()
        paid = (paid[:, None] + np.count_nonzero(leaving, axis=-1) * (position.cost + heads)).ravel()
        waiting, heads = (waiting[:, None] & ~leave).reshape(-1, len(problem)), heads.ravel()
    right += np.count_nonzero(waiting & (problem.correct == 1), axis=-1)
    paid += np.count_nonzero(waiting, axis=-1) * (problem.cost + heads)
    paid[0] = len(problem)  # all exits off: the uncut model
    return right, paid / len(problem)


def _choices(position: Position, samples: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Who would leave (choices, samples), who would be right, and what the head costs; the first choice is off."""
    nobody = np.zeros(samples, np.bool_)
    choices = [(nobody, nobody, 0.0)]
    for head in position.heads:
        # Above the highest confidence nobody leaves, as if it were off, but the head is paid for.
        thresholds = [0, *np.unique(head.confidence)[:-1]]
        choices += [(head.confidence > threshold, head.correct == 1, head.cost) for threshold in thresholds]
    leave, correct, cost = map(np.array, zip(*choices, strict=True))
    return leave, correct, cost
