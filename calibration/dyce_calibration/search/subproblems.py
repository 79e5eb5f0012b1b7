"""Divide a search problem into parts in which costs simply add up, as the exact search requires.

Costs do not simply add up with spans, with savers, which may be cut short, and with heads that need others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod

import numpy as np

from dyce_calibration.search.problem import ExitChoice, Problem, SegmentRange, Setting

# Limits on the number of sets of spans that are searched, of candidates for these, and of combinations of the places at
# which savers end.
_MOST_SPAN_SETS, _MOST_CANDIDATES, _MOST_ENDINGS = 8, 256, 64


@dataclass(frozen=True)
class SubProblem:
    """A problem with some of the positions of another problem, the whole, and some of the heads there.

    Attributes:
        problem: the part.
        kept: for every position of the part, its index in the whole and the indices of its heads there.
        count: number of positions of the whole.
    """

    problem: Problem
    kept: tuple[tuple[int, tuple[int, ...]], ...]
    count: int

    def whole(self, setting: Setting) -> Setting:
        """Convert a setting of the part to one of the whole."""
        places = {
            k: None if choice is None else ExitChoice(heads[choice.head], choice.threshold)
            for (k, heads), choice in zip(self.kept, setting, strict=True)
        }
        return tuple(places.get(k) for k in range(self.count))


def subproblems(problem: Problem) -> list[SubProblem]:
    """Divide a problem with spans, savers or heads that need others into parts.

    A part is a combination of: no span, or a set of spans that do not overlap; for each saver an exit at which it ends,
    or no use of that saver; no head that needs others, or one such head with all heads that it needs. If savers have
    many exits, only some are considered, so that there are at most 64 combinations of ends.
    """
    parts = (
        _part(problem, spans, closed, running)
        for spans in ((), *_span_sets(problem.spans)[: _MOST_SPAN_SETS - 1])
        for unused in _unused(problem)
        for closed in [unused | {k for span in spans for k in range(span.first, span.last)}]
        for running in _sequences(problem)
        if closed.isdisjoint(k for k, _ in running)
    )
    return [found for found in parts if found.problem.positions]


def _sequences(problem: Problem) -> Iterator[frozenset[tuple[int, int]]]:
    """Yield sets of heads (position, index) that always run together, even if their exits are off."""
    yield frozenset()
    for k, position in enumerate(problem.positions):
        for index, head in enumerate(position.heads):
            if head.needs:
                yield frozenset((*head.needs, (k, index)))


def _span_sets(spans: Sequence[SegmentRange]) -> list[tuple[SegmentRange, ...]]:
    """Return sets of spans that do not overlap, those that cover the most segments first."""
    found: list[tuple[SegmentRange, ...]] = [()]
    for span in spans:
        found += [(*f, span) for f in found if all(span.first > s.last or span.last < s.first for s in f)]
        # The number of sets can grow exponentially with that of spans.
        found = sorted(found, key=lambda one: -sum(span.last - span.first for span in one))[:_MOST_CANDIDATES]
    return [one for one in found if one]


def _unused(problem: Problem) -> Iterator[set[int]]:
    """Yield, for each combination of places at which savers end, the positions of savers that are not reached."""
    ranges = [range(first, end + 1) for first, end in problem.networks()[:-1]]
    kept = [list(range(len(positions) + 1)) for positions in ranges]
    while prod(map(len, kept)) > _MOST_ENDINGS and len(longest := max(kept, key=len)) > 2:
        del longest[len(longest) // 2]
    for counts in product(*kept):
        yield {k for positions, count in zip(ranges, counts, strict=True) for k in positions[count:]}


def _part(
    problem: Problem,
    spans: tuple[SegmentRange, ...],
    closed: Collection[int],
    running: Collection[tuple[int, int]],
) -> SubProblem:
    """Return a part of a problem.

    Args:
        spans: the spans that run.
        closed: positions at which no sample exits.
        running: heads (position, index) that always run; their cost is included in that of the positions, and samples
            may exit at them.
    """
    open_ = [k for k in range(len(problem.positions)) if k not in closed]
    on_the_way = np.zeros(len(problem.positions) + 1)
    for k, index in running:
        on_the_way[k] += problem.positions[k].heads[index].cost
    backbone, fixed = problem.backbone(open_, spans), np.cumsum(on_the_way).tolist()
    kept, positions = [], []
    for k in open_:
        position = problem.positions[k]
        usable = {i: replace(head, cost=0.0, needs=()) for i, head in enumerate(position.heads) if (k, i) in running}
        usable |= {i: head for i, head in enumerate(position.heads) if not head.needs and i not in usable}
        if usable:
            kept.append((k, tuple(usable)))
            positions.append(replace(position, cost=backbone[k], fixed=fixed[k], heads=tuple(usable.values())))
    final = replace(problem.final, cost=backbone[-1], fixed=fixed[-1])
    return SubProblem(Problem(tuple(positions), final, steps=problem.steps), tuple(kept), len(problem.positions))
