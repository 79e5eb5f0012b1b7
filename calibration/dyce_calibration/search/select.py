"""Select from many candidate exits the few that save most, and the heads that are then used."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from dyce_calibration.promises.choose import choose
from dyce_calibration.records import Records
from dyce_calibration.search import exact
from dyce_calibration.search.costs import CostTable
from dyce_calibration.search.problem import Problem, make_problem
from dyce_runtime.bundle.manifest import FINAL

# Exits are compared by the mean cost saved over losses of up to this much accuracy.
_LOSS = 0.05
_WEIGHTS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99)


def select_exits(
    records: Records,
    costs: CostTable,
    most: int,
    progress: Callable[[Iterable[int]], Iterable[int]] = lambda rounds: rounds,
) -> list[str]:
    """Select at most ``most`` exits greedily on the split ``search``, and return their ids in execution order.

    Each step adds the exit with which the front saves most: the mean of 1 - cost over all losses up to five points. The
    selection ends early if no exit increases this by more than 0.001.

    Args:
        progress: wraps the iteration over the steps, to show progress.

    Raises:
        DataError: see :func:`make_problem`.
    """
    problem = make_problem(records.of_split("search"), costs)
    chosen: list[int] = []
    saved = 0.0
    for _ in progress(range(min(most, len(problem.positions)))):
        others = [index for index in range(len(problem.positions)) if index not in chosen]
        gains = [_saved(_restricted(problem, sorted([*chosen, index]))) for index in others]
        best = int(np.argmax(gains))
        if gains[best] <= saved + 1e-3:
            break
        saved = gains[best]
        chosen.append(others[best])
    return [problem.positions[index].exit for index in sorted(chosen)]


def used_heads(records: Records, costs: CostTable, exits: list[str]) -> set[tuple[str, str]]:
    """Return the heads (exit, type) at these exits that the configurations of a bundle would use."""
    heads = {head for head in records.heads if head[0] in exits}
    found = choose(restrict_records(records, heads), restrict_costs(costs, heads))
    entries = (*found.named.values(), *found.front)
    return {(exit, on.head) for entry in entries for exit, on in entry.exits.items()}


def restrict_records(records: Records, heads: set[tuple[str, str]]) -> Records:
    """Return the records of some heads (exit, type) and of the final head."""
    return records.with_columns([index for index, head in enumerate(records.heads) if head in heads])


def restrict_costs(costs: CostTable, heads: set[tuple[str, str]]) -> CostTable:
    """Return the cost table of these heads (exit, type) and their exits, without spans, needs and measurement."""
    exits = {exit for exit, _ in heads}
    return CostTable(
        costs.unit,
        {exit: cost for exit, cost in costs.backbone.items() if exit in exits or exit == FINAL},
        {e: {t: cost for t, cost in of.items() if (e, t) in heads} for e, of in costs.heads.items() if e in exits},
        costs.full,
        savers=tuple(exit for exit in costs.savers if exit in exits),
    )


def _restricted(problem: Problem, positions: list[int]) -> Problem:
    return replace(problem, positions=tuple(problem.positions[index] for index in positions))


def _saved(problem: Problem) -> float:
    bound = exact.search(problem, _WEIGHTS, around=False).front.bound
    most = len(problem) * problem.steps
    least = max(0, problem.full_gain - int(_LOSS * most))
    return float(np.clip(1 - bound[least : problem.full_gain + 1], 0, None).mean())
