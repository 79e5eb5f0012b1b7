"""A search problem: the records of one split and a cost table as arrays, position by position."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from dyce_calibration.records import Records
from dyce_calibration.search.costs import CostTable
from dyce_runtime.bundle.configuration import ExitSetting, Figures
from dyce_runtime.bundle.manifest import BUILTIN, FINAL
from dyce_runtime.errors import DataError
from dyce_runtime.execution.plan import minimal_cover
from dyce_runtime.measure.bench_loss import paired_error
from dyce_runtime.measure.piece_costs import IMAGE
from dyce_runtime.program.rule import leaves

# Losses between 0 and 1 are counted in at most that many steps, and a front has at most about that many cells.
_MOST_STEPS, _MOST_CELLS = 100, 1 << 19

# What every sample pays, or what each of them pays, (N,).
Cost: TypeAlias = "float | NDArray[np.float64]"


@dataclass(frozen=True)
class ExitChoice:
    """How an exit that is on is set: the index of its head at that position, and its threshold (float32)."""

    head: int
    threshold: float


# For every position in execution order, how its exit is set; None turns it off.
Setting: TypeAlias = "tuple[ExitChoice | None, ...]"


@dataclass(frozen=True)
class Head:
    """One head at one position, on all samples.

    Attributes:
        score: (N,) float32.
        loss: (N,) float32, from 0 to 1.
        gain: (N,) int8, from 0 to the steps of the problem: 1 - loss, rounded to whole steps.
        cost: what evaluating it adds, relative to the full model.
        needs: positions and indices of the heads there that have to have run before it.
    """

    type: str
    score: NDArray[np.float32]
    loss: NDArray[np.float32]
    gain: NDArray[np.int8]
    cost: float
    needs: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Position:
    """An exit point and its heads; all costs are relative to the full model.

    Attributes:
        cost: of the whole backbone up to there.
        share: (N,) float64, the share of ``cost`` that each sample pays, since gates left out the rest; None where
            every sample pays all of it.
        fixed: the cost of heads that run on the way there whether or not samples may leave at them.
    """

    exit: str
    cost: float
    heads: tuple[Head, ...]
    share: NDArray[np.float64] | None = None
    fixed: float = 0.0

    @cached_property
    def paid(self) -> Cost:
        """What samples pay up to there, without the heads that are on."""
        return self.pays(self.cost)

    def pays(self, backbone: float, heads: float = 0.0) -> Cost:
        """The same if the whole backbone cost ``backbone`` up to there, and heads that cost ``heads`` ran."""
        return (backbone if self.share is None else backbone * self.share) + self.fixed + heads


@dataclass(frozen=True)
class SegmentRange:
    """Segments that run as one piece, from ``first`` to ``last``. ``cost`` is relative to the full model."""

    first: int
    last: int
    cost: float


@dataclass(frozen=True)
class Problem:
    """What a search looks at.

    Attributes:
        positions: in execution order.
        final: the end of the chain of segments, savers included, with the model's own classifier as its only head.
        spans: what a setting may run instead of several segments, where all exits between them are off.
        savers: positions at which a saver ends.
        steps: how many steps a loss of 1 has; gains are whole numbers of them.
    """

    positions: tuple[Position, ...]
    final: Position
    spans: tuple[SegmentRange, ...] = ()
    savers: tuple[int, ...] = ()
    steps: int = 1

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.full.loss)

    @property
    def full(self) -> Head:
        """The model's own classifier."""
        return self.final.heads[0]

    @property
    def off(self) -> Setting:
        """All exits off: the full model."""
        return (None,) * len(self.positions)

    @cached_property
    def full_gain(self) -> int:
        """The gain of the full model, summed over the samples: with single labels, how many it labels right."""
        return int(self.full.gain.sum(dtype=np.int64))

    @cached_property
    def full_cost(self) -> float:
        """What the full model costs, summed over the samples: each pays 1, or what gates leave of it."""
        return float(len(self)) if self.final.share is None else float(np.sum(self.final.paid))

    @property
    def accuracy(self) -> float:
        """1 - the mean loss of the full model."""
        return (len(self) - float(self.full.loss.sum(dtype=np.float64))) / len(self)

    def exits(self, setting: Setting) -> dict[str, ExitSetting]:
        """A setting as a configuration holds it."""
        return {
            position.exit: ExitSetting(position.heads[choice.head].type, choice.threshold)
            for position, choice in zip(self.positions, setting, strict=True)
            if choice is not None
        }

    def setting(self, exits: Mapping[str, ExitSetting]) -> Setting:
        """The inverse of :meth:`exits`. Raises KeyError if a head was not recorded."""
        known = {position.exit: [head.type for head in position.heads] for position in self.positions}
        for exit, chosen in exits.items():
            if chosen.head not in known.get(exit, []):
                raise KeyError((exit, chosen.head))
        return tuple(
            ExitChoice(known[p.exit].index(exits[p.exit].head), exits[p.exit].threshold) if p.exit in exits else None
            for p in self.positions
        )

    def leaving(self, setting: Setting) -> list[NDArray[np.int64]]:
        """The indices of the samples that leave at each position, and last of those that reach the end.

        A sample leaves at the first exit that is on and whose score is strictly above its threshold (both float32).
        """
        found, waiting = [], np.arange(len(self))
        for position, choice in zip(self.positions, setting, strict=True):
            if choice is None:
                found.append(waiting[:0])
                continue
            leave = leaves(position.heads[choice.head].score.take(waiting), choice.threshold)
            found.append(waiting[leave])
            waiting = waiting[~leave]
        return [*found, waiting]

    def counts(self, setting: Setting) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """How many samples leave at each position and at the end, and the sum of their 1 - loss."""
        leaving, loss = self.leaving(setting), self.losses(setting)
        left = np.array([len(rows) for rows in leaving])
        return left, left - np.array([loss[rows].sum(dtype=np.float64) for rows in leaving])

    def cost(self, setting: Setting) -> float:
        """The mean over the samples, relative to the full model."""
        groups = zip(self.costs(setting), self.leaving(setting), strict=True)
        return sum(total_cost(cost, rows, len(rows)) for cost, rows in groups) / len(self)

    @property
    def simple(self) -> bool:
        """Whether costs add up from position to position, whatever is on."""
        return not (self.spans or self.savers or any(head.needs for p in self.positions for head in p.heads))

    def costs(self, setting: Setting) -> list[Cost]:
        """What samples pay that leave at each position, or at the end: the backbone and every head on the way."""
        if not any(setting):
            return [1.0] * len(setting) + [1.0 if self.final.share is None else self.final.paid]
        chosen = [(k, choice.head) for k, choice in enumerate(setting) if choice is not None]
        running = {*chosen, *(other for k, head in chosen for other in self.positions[k].heads[head].needs)}
        of_heads = np.zeros(len(setting) + 1)
        for k, head in running:
            of_heads[k] += self.positions[k].heads[head].cost
        places = (*self.positions, self.final)
        backbone = [place.cost for place in places] if self.simple else self.backbone({k for k, _ in running})
        heads = np.cumsum(of_heads).tolist()
        return [place.pays(*both) for place, *both in zip(places, backbone, heads, strict=True)]

    def backbone(self, stops: Collection[int], spans: tuple[SegmentRange, ...] | None = None) -> list[float]:
        """What segments and spans cost up to each position at which a head runs, and up to the end.

        Args:
            stops: the positions at which a head runs.
            spans: those that may run; None for all of the problem.
        """
        chain = [*(position.cost for position in self.positions), self.final.cost]
        segments = [SegmentRange(k, k, cost) for k, cost in enumerate(np.diff(chain, prepend=0.0).tolist())]
        pieces = [*segments, *(self.spans if spans is None else spans)]
        paid, total = list(chain), 0.0
        for first, end in self.networks():
            for last in (k for k in range(first, end + 1) if k == len(self.positions) or k in stops):
                total += sum(piece.cost for piece in minimal_cover(pieces, first, last))
                paid[last], first = total, last + 1
        return paid

    def networks(self) -> list[tuple[int, int]]:
        """The first and the last position of every saver and of the base, whose last one is the end."""
        ends = [*self.savers, len(self.positions)]
        return list(zip([0, *(end + 1 for end in ends)], ends, strict=False))

    def losses(self, setting: Setting) -> NDArray[np.float32]:
        """(N,) float32, the loss of every sample under the setting."""
        found = self.full.loss.copy()
        for position, choice, rows in zip(self.positions, setting, self.leaving(setting), strict=False):
            if choice is not None:
                found[rows] = position.heads[choice.head].loss[rows]
        return found

    def lost(self, setting: Setting) -> NDArray[np.float32]:
        """(N,) float32, from -1 to 1: by how much every sample loses more than under the full model."""
        return self.losses(setting) - self.full.loss

    def evaluate(self, setting: Setting) -> Figures:
        """Accuracy, loss, cost and exit shares of a setting."""
        count, lost = len(self), self.lost(setting)
        loss = float(lost.sum(dtype=np.float64))
        return Figures(
            accuracy=(count * self.accuracy - loss) / count,
            loss=loss / count,
            cost=self.cost(setting),
            samples=count,
            share_per_exit=tuple(len(rows) / count for rows in self.leaving(setting)),
            # The full model loses nothing against itself.
            loss_error=paired_error(lost) if any(setting) else 0.0,
        )


def part(cost: Cost, samples: NDArray[np.int64]) -> Cost:
    """What some of the samples pay."""
    return cost if isinstance(cost, float) else cost.take(samples)


def total_cost(cost: Cost, samples: NDArray[np.int64] | NDArray[np.bool_], count: int) -> float:
    """What some of the samples, ``count`` of them by index or mask, pay together."""
    return cost * count if isinstance(cost, float) else float(cost[samples].sum())


def total_gain(gain: NDArray[np.int8], samples: NDArray[np.bool_], steps: int) -> int:
    """What those samples gain together that are true in a mask (N,); gains of 0 and 1 are counted, which is faster."""
    return int(np.count_nonzero(gain & samples)) if steps == 1 else int(gain[samples].sum(dtype=np.int64))


def make_problem(records: Records, costs: CostTable) -> Problem:
    """Arrange records, all of them, for a search.

    Raises:
        DataError: no samples, several variants, a head without a cost, or one that needs another head which was not
            recorded.
    """
    if len(records) == 0:
        raise DataError("there are no records to search in; expected at least one sample")
    if len(variants := np.unique(records.variant)) > 1:
        names = ", ".join(map(repr, variants.tolist()))
        raise DataError(f"the records hold the variants {names}; expected those of one to search in")
    steps = _steps(records.loss)
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

    def head(type: str, column: int, cost: float, needs: tuple[tuple[int, int], ...] = ()) -> Head:
        score, loss = (np.ascontiguousarray(array[:, column]) for array in (records.scores, records.loss))
        return Head(type, score, loss, np.rint(steps * (1 - loss)).astype(np.int8), cost / costs.full, needs)

    def heads(exit: str) -> tuple[Head, ...]:
        types = [(column, records.heads[column][1]) for column in columns.get(exit, [])]
        needs = costs.needs.get(exit, {})
        return tuple(
            head(type, column, costs.heads[exit][type], tuple(place(*other) for other in needs.get(type, ())))
            for column, type in types
        )

    def position(exit: str, of_exit: tuple[Head, ...], column: int | None) -> Position:
        share = np.ones(1) if column is None else records.cost[:, column].astype(np.float64)
        return Position(exit, costs.backbone[exit] / costs.full, of_exit, None if (share == 1).all() else share)

    return Problem(
        tuple(position(exit, heads(exit), columns.get(exit, [None])[0]) for exit in exits),
        position(FINAL, (head(BUILTIN, -1, 0.0),), -1),
        _spans(costs),
        tuple(exits.index(exit) for exit in costs.savers),
        steps,
    )


def _steps(loss: NDArray[np.float32]) -> int:
    """In how many steps losses are counted: 1 where each is 0 or 1."""
    if ((loss == 0) | (loss == 1)).all():
        return 1
    return int(np.clip(_MOST_CELLS // len(loss), 1, _MOST_STEPS))


def _spans(costs: CostTable) -> tuple[SegmentRange, ...]:
    ends = list(costs.backbone)
    starts = [IMAGE, *ends]
    return tuple(
        SegmentRange(starts.index(start), ends.index(end), cost / costs.full)
        for start, by_end in costs.spans.items()
        for end, cost in by_end.items()
    )
