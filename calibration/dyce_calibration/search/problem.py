"""A search problem: the records of one split and a cost table as arrays, position by position."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from dyce_calibration.records import Records
from dyce_calibration.search.costs import CostTable
from dyce_runtime.bundle.configuration import ExitSetting, Figures
from dyce_runtime.bundle.manifest import FINAL
from dyce_runtime.errors import DataError
from dyce_runtime.execution.plan import cover
from dyce_runtime.measure.bench_loss import paired_error
from dyce_runtime.measure.piece_costs import IMAGE
from dyce_runtime.program.rule import leaves

# A search looks along that many ways through the backbone.
_MOST_CHAINS = 8


@dataclass(frozen=True)
class On:
    """An exit that is on: the index of its head at that position, and its threshold (float32)."""

    head: int
    threshold: float


# For every position in execution order, how its exit is set; None is off.
Setting = tuple[On | None, ...]


@dataclass(frozen=True)
class Head:
    """One head at one position, on all samples.

    Attributes:
        confidence: (N,) float32.
        correct: (N,) int8, 1 where its prediction is the label.
        cost: what evaluating it adds, relative to the full model.
        needs: positions and indices of the heads there that have to have run before it.
    """

    type: str
    confidence: NDArray[np.float32]
    correct: NDArray[np.int8]
    cost: float
    needs: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Position:
    """An exit point and its heads. ``cost`` is that of the backbone up to there, relative to the full model."""

    exit: str
    cost: float
    heads: tuple[Head, ...]


@dataclass(frozen=True)
class Stretch:
    """Segments that run as one, from ``first`` to ``last``. ``cost`` is relative to the full model."""

    first: int
    last: int
    cost: float


@dataclass(frozen=True)
class Problem:
    """What a search looks at.

    Attributes:
        positions: in execution order.
        correct: (N,) int8, of the model's own classifier.
        cost: of the whole chain of segments, savers included, relative to the uncut model.
        spans: what a setting may run instead of several segments, where all exits between them are off.
        savers: positions at which a saver ends.
    """

    positions: tuple[Position, ...]
    correct: NDArray[np.int8]
    cost: float
    spans: tuple[Stretch, ...] = ()
    savers: tuple[int, ...] = ()

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.correct)

    @property
    def off(self) -> Setting:
        """All exits off: the full model."""
        return (None,) * len(self.positions)

    @property
    def right(self) -> int:
        """Samples that the full model labels right."""
        return int(np.count_nonzero(self.correct))

    def exits(self, setting: Setting) -> dict[str, ExitSetting]:
        """A setting as a configuration holds it."""
        return {
            position.exit: ExitSetting(position.heads[on.head].type, on.threshold)
            for position, on in zip(self.positions, setting, strict=True)
            if on is not None
        }

    def setting(self, exits: Mapping[str, ExitSetting]) -> Setting:
        """The inverse of :meth:`exits`. Raises KeyError if a head was not recorded."""
        known = {position.exit: [head.type for head in position.heads] for position in self.positions}
        for exit, on in exits.items():
            if on.head not in known.get(exit, []):
                raise KeyError((exit, on.head))
        return tuple(
            On(known[p.exit].index(exits[p.exit].head), exits[p.exit].threshold) if p.exit in exits else None
            for p in self.positions
        )

    def counts(self, setting: Setting) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """How many samples leave at each position and at the end, and how many of these are labelled right.

        A sample leaves at the first exit that is on and whose confidence is strictly above its threshold (both
        float32).
        """
        left = np.zeros(len(setting) + 1, np.int64)
        right = np.zeros(len(setting) + 1, np.int64)
        waiting = np.ones(len(self), np.bool_)
        for index, (position, on) in enumerate(zip(self.positions, setting, strict=True)):
            if on is not None:
                head = position.heads[on.head]
                leave = leaves(head.confidence, on.threshold)
                leave &= waiting
                waiting ^= leave
                left[index], right[index] = np.count_nonzero(leave), np.count_nonzero(head.correct[leave])
        left[-1], right[-1] = np.count_nonzero(waiting), np.count_nonzero(self.correct[waiting])
        return left, right

    @property
    def simple(self) -> bool:
        """Whether costs add up from position to position, whatever is on."""
        return not (self.spans or self.savers or any(head.needs for p in self.positions for head in p.heads))

    def paid(self, setting: Setting) -> NDArray[np.float64]:
        """What a sample pays that leaves at each position or at the end: the backbone and every head on the way."""
        if not any(setting):
            return np.ones(len(setting) + 1)
        on = [(k, on.head) for k, on in enumerate(setting) if on is not None]
        running = {*on, *(other for k, head in on for other in self.positions[k].heads[head].needs)}
        heads = np.zeros(len(setting) + 1)
        for k, head in running:
            heads[k] += self.positions[k].heads[head].cost
        stops = {k for k, _ in running}
        backbone = [*(p.cost for p in self.positions), self.cost] if self.simple else self._backbone(stops)
        total: NDArray[np.float64] = np.array(backbone) + np.cumsum(heads)
        return total

    def _backbone(self, stops: Collection[int]) -> list[float]:
        """What is paid for segments and spans up to each position at which a head runs and the end."""
        chain = [*(position.cost for position in self.positions), self.cost]
        segments = [Stretch(k, k, cost) for k, cost in enumerate(np.diff(chain, prepend=0.0).tolist())]
        pieces = [*segments, *self.spans]
        paid, total = list(chain), 0.0
        for first, end in self._networks():
            for last in (k for k in range(first, end + 1) if k == len(self.positions) or k in stops):
                total += sum(piece.cost for piece in cover(pieces, first, last))
                paid[last], first = total, last + 1
        return paid

    def _networks(self) -> list[tuple[int, int]]:
        """The first and the last position of every saver and of the base, whose last one is the end."""
        ends = [*self.savers, len(self.positions)]
        return list(zip([0, *(end + 1 for end in ends)], ends, strict=False))

    def chains(self) -> list[Chain]:
        """Every way in which savers can run, some not at all or in part; without spans, and with those of them that go
        together as the only way; and without heads that need others, or with all that one of them needs.

        Along each of these, costs add up from position to position, as a search needs it.
        """
        families = ((), *_families(self.spans)[: _MOST_CHAINS - 1])
        return [
            self._chain(spans, closed, running)
            for spans in families
            for unused in self._unused()
            for closed in [unused | {k for span in spans for k in range(span.first, span.last)}]
            for running in self._sequences()
            if closed.isdisjoint(k for k, _ in running)
        ]

    def _sequences(self) -> Iterator[frozenset[tuple[int, int]]]:
        """Positions and indices of heads that run together whether or not samples leave there."""
        yield frozenset()
        for k, position in enumerate(self.positions):
            for index, head in enumerate(position.heads):
                if head.needs:
                    yield frozenset((*head.needs, (k, index)))

    def _unused(self) -> Iterator[set[int]]:
        """The positions that a saver does not reach, for every choice of where each of them ends."""
        ranges = [range(first, end + 1) for first, end in self._networks()[:-1]]
        for kept in product(*(range(len(positions) + 1) for positions in ranges)):
            yield {k for positions, count in zip(ranges, kept, strict=True) for k in positions[count:]}

    def _chain(
        self, spans: tuple[Stretch, ...], closed: Collection[int], running: Collection[tuple[int, int]]
    ) -> Chain:
        """Nothing leaves at the closed positions; the running heads are paid on the way and may be used."""
        open_ = [k for k in range(len(self.positions)) if k not in closed]
        on_the_way = np.zeros(len(self.positions) + 1)
        for k, index in running:
            on_the_way[k] += self.positions[k].heads[index].cost
        costs = np.array(replace(self, spans=spans)._backbone(open_)) + np.cumsum(on_the_way)
        kept, positions = [], []
        for k in open_:
            position = self.positions[k]
            usable = {
                i: replace(head, cost=0.0, needs=()) for i, head in enumerate(position.heads) if (k, i) in running
            }
            usable |= {i: head for i, head in enumerate(position.heads) if not head.needs and i not in usable}
            if usable:
                kept.append((k, tuple(usable)))
                positions.append(replace(position, cost=float(costs[k]), heads=tuple(usable.values())))
        return Chain(Problem(tuple(positions), self.correct, float(costs[-1])), tuple(kept), len(self.positions))

    def evaluate(self, setting: Setting) -> Figures:
        """Accuracy, loss, cost and exit shares of a setting."""
        left, right = self.counts(setting)
        accuracy = int(right.sum()) / len(self)
        return Figures(
            accuracy=accuracy,
            loss=(self.right - int(right.sum())) / len(self),
            cost=float(left @ self.paid(setting)) / len(self),
            samples=len(self),
            share_per_exit=tuple((left / len(self)).tolist()),
            loss_error=self._loss_error(setting),
        )

    def _loss_error(self, setting: Setting) -> float:
        """Paired standard error of the loss; the full model loses nothing against itself."""
        if setting == self.off:
            return 0.0
        lost = self.correct - self.outcomes(setting)
        return paired_error(int((lost == 1).sum()), int((lost == -1).sum()), len(self))

    def outcomes(self, setting: Setting) -> NDArray[np.int8]:
        """(N,) 1 where the setting labels a sample right."""
        correct = self.correct
        for position, on in zip(self.positions[::-1], setting[::-1], strict=True):
            if on is not None:
                head = position.heads[on.head]
                correct = np.where(leaves(head.confidence, on.threshold), head.correct, correct)
        return correct


@dataclass(frozen=True)
class Chain:
    """A problem with some of the positions of another one, and some of the heads there.

    Attributes:
        kept: for every position of the problem that in the whole, and the index there of each of its heads.
        count: positions of the whole.
    """

    problem: Problem
    kept: tuple[tuple[int, tuple[int, ...]], ...]
    count: int

    def whole(self, setting: Setting) -> Setting:
        """A setting of the part as one of the whole."""
        places = {
            k: None if on is None else On(heads[on.head], on.threshold)
            for (k, heads), on in zip(self.kept, setting, strict=True)
        }
        return tuple(places.get(k) for k in range(self.count))


def _families(spans: Sequence[Stretch]) -> list[tuple[Stretch, ...]]:
    """Spans that do not overlap, those that cover the most segments first."""
    found: list[tuple[Stretch, ...]] = [()]
    for span in spans:
        found += [(*f, span) for f in found if all(span.first > s.last or span.last < s.first for s in f)]
    return sorted(found[1:], key=lambda family: -sum(span.last - span.first for span in family))


def make_problem(records: Records, costs: CostTable) -> Problem:
    """Arrange records, all of them, for a search.

    Raises:
        DataError: no samples, a head without a cost, or one that needs another which was not recorded.
    """
    if len(records) == 0:
        raise DataError("there are no records to search in; expected at least one sample")
    correct = (records.predictions == records.labels[:, None]).astype(np.int8)
    columns: dict[str, list[int]] = {}
    for column, (exit, type) in enumerate(records.heads):
        if exit not in costs.backbone or type not in costs.heads.get(exit, {}):
            raise DataError(
                f"the cost table has no cost for head {type} at exit {exit}, which was recorded",
                hint="Use a cost table of the same bundle.",
            )
        columns.setdefault(exit, []).append(column)

    exits = [exit for exit in costs.backbone if exit != FINAL]
    places = {
        records.heads[column]: (exits.index(exit), index)
        for exit, of_exit in columns.items()
        for index, column in enumerate(of_exit)
    }

    def place(exit: str, type: str) -> tuple[int, int]:
        if (exit, type) not in places:
            raise DataError(f"head {type} at exit {exit} was not recorded, and others that were need it")
        return places[exit, type]

    def head(column: int) -> Head:
        exit, type = records.heads[column]
        return Head(
            type,
            np.ascontiguousarray(records.confidences[:, column]),
            np.ascontiguousarray(correct[:, column]),
            costs.heads[exit][type] / costs.full,
            tuple(place(*other) for other in costs.needs.get(exit, {}).get(type, ())),
        )

    return Problem(
        tuple(Position(e, costs.backbone[e] / costs.full, tuple(map(head, columns.get(e, [])))) for e in exits),
        np.ascontiguousarray(correct[:, -1]),
        costs.backbone[FINAL] / costs.full,
        _spans(costs),
        tuple(exits.index(exit) for exit in costs.savers),
    )


def _spans(costs: CostTable) -> tuple[Stretch, ...]:
    ends = list(costs.backbone)
    starts = [IMAGE, *ends]
    return tuple(
        Stretch(starts.index(start), ends.index(end), cost / costs.full)
        for start, by_end in costs.spans.items()
        for end, cost in by_end.items()
    )
