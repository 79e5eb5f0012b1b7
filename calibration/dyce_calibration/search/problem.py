"""Search problems: the records of one split and a cost table, arranged as arrays for each position."""

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

# Losses between 0 and 1 are rounded to at most this many steps, and a front has at most about this many cells.
_MOST_STEPS, _MOST_CELLS = 100, 1 << 19

# The cost of every sample, or the costs (N,) of the samples.
Cost: TypeAlias = "float | NDArray[np.float64]"


@dataclass(frozen=True)
class ExitChoice:
    """How an exit that is on is set.

    Attributes:
        head: index of its head at that position.
        threshold: a float32 value.
    """

    head: int
    threshold: float


# For every position, in execution order, how its exit is set; None if it is off.
Setting: TypeAlias = "tuple[ExitChoice | None, ...]"


@dataclass(frozen=True)
class Head:
    """The results of one head at one position for all samples.

    Attributes:
        score: (N,) float32.
        loss: (N,) float32 in [0, 1].
        gain: (N,) int8: 1 - loss in steps of the problem, rounded.
        cost: cost of evaluating it, relative to the full model.
        needs: (position, index of a head there) for each earlier head that has to run before it.
    """

    type: str
    score: NDArray[np.float32]
    loss: NDArray[np.float32]
    gain: NDArray[np.int8]
    cost: float
    needs: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Position:
    """An exit point and its heads. All costs are relative to the full model.

    Attributes:
        exit: id of the exit.
        cost: cost of the whole backbone up to there.
        share: (N,) float64, the fraction of ``cost`` that each sample pays, since gates skip the rest; None if every
            sample pays all of it.
        fixed: cost of heads that always run on the way there, even if their exits are off.
    """

    exit: str
    cost: float
    heads: tuple[Head, ...]
    share: NDArray[np.float64] | None = None
    fixed: float = 0.0

    @cached_property
    def paid(self) -> Cost:
        """The cost of samples that exit there, without the heads that are on."""
        return self.pays(self.cost)

    def pays(self, backbone: float, heads: float = 0.0) -> Cost:
        """Return the cost of samples that exit there.

        Args:
            backbone: cost of the whole backbone up to there, instead of :attr:`cost`.
            heads: cost of the heads that ran on the way.
        """
        return (backbone if self.share is None else backbone * self.share) + self.fixed + heads


@dataclass(frozen=True)
class SegmentRange:
    """Consecutive segments that run as one piece (a span).

    Attributes:
        first, last: indices of the first and the last segment.
        cost: relative to the full model.
    """

    first: int
    last: int
    cost: float


@dataclass(frozen=True)
class Problem:
    """The input of a search.

    Attributes:
        positions: in execution order.
        final: the end of the chain of segments, with the model's own classifier (the final head) as its only head. Its
            cost includes savers.
        spans: spans that run instead of their segments if all exits between these are off.
        savers: positions at which a saver ends.
        steps: the number of steps in a gain of 1; gains are counted in whole steps.
    """

    positions: tuple[Position, ...]
    final: Position
    spans: tuple[SegmentRange, ...] = ()
    savers: tuple[int, ...] = ()
    steps: int = 1

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.full.loss)

    @property
    def full(self) -> Head:
        """The final head."""
        return self.final.heads[0]

    @property
    def off(self) -> Setting:
        """The setting with all exits off: the full model."""
        return (None,) * len(self.positions)

    @cached_property
    def full_gain(self) -> int:
        """The gain of the full model, summed over the samples. With single labels: how many it classifies correctly."""
        return int(self.full.gain.sum(dtype=np.int64))

    @cached_property
    def full_cost(self) -> float:
        """The cost of the full model, summed over the samples: 1 for each, or less if gates skip parts."""
        return float(len(self)) if self.final.share is None else float(np.sum(self.final.paid))

    @property
    def accuracy(self) -> float:
        """1 minus the mean loss of the full model."""
        return (len(self) - float(self.full.loss.sum(dtype=np.float64))) / len(self)

    def exits(self, setting: Setting) -> dict[str, ExitSetting]:
        """Convert a setting to the exits of a configuration."""
        return {
            position.exit: ExitSetting(position.heads[choice.head].type, choice.threshold)
            for position, choice in zip(self.positions, setting, strict=True)
            if choice is not None
        }

    def setting(self, exits: Mapping[str, ExitSetting]) -> Setting:
        """Convert the exits of a configuration to a setting. Raises KeyError if a head was not recorded."""
        known = {position.exit: [head.type for head in position.heads] for position in self.positions}
        for exit, chosen in exits.items():
            if chosen.head not in known.get(exit, []):
                raise KeyError((exit, chosen.head))
        return tuple(
            ExitChoice(known[p.exit].index(exits[p.exit].head), exits[p.exit].threshold) if p.exit in exits else None
            for p in self.positions
        )

    def leaving(self, setting: Setting) -> list[NDArray[np.int64]]:
        """Return the indices of the samples that exit at each position, and last of those that reach the end.

        A sample exits at the first exit that is on and whose score is strictly above its threshold (both float32).
        """
        found, remaining = [], np.arange(len(self))
        for position, choice in zip(self.positions, setting, strict=True):
            if choice is None:
                found.append(remaining[:0])
                continue
            exiting = leaves(position.heads[choice.head].score.take(remaining), choice.threshold)
            found.append(remaining[exiting])
            remaining = remaining[~exiting]
        return [*found, remaining]

    def counts(self, setting: Setting) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return how many samples exit at each position and at the end, and the sum of their 1 - loss.

        Returns:
            both (positions + 1,): the former int64, the latter float64.
        """
        leaving, loss = self.leaving(setting), self.losses(setting)
        exited = np.array([len(rows) for rows in leaving])
        return exited, exited - np.array([loss[rows].sum(dtype=np.float64) for rows in leaving])

    def cost(self, setting: Setting) -> float:
        """Return the mean cost of a sample, relative to the full model."""
        groups = zip(self.costs(setting), self.leaving(setting), strict=True)
        return sum(total_cost(cost, rows, len(rows)) for cost, rows in groups) / len(self)

    @property
    def simple(self) -> bool:
        """Whether the costs of segments and heads simply add up, whichever exits are on."""
        return not (self.spans or self.savers or any(head.needs for p in self.positions for head in p.heads))

    def costs(self, setting: Setting) -> list[Cost]:
        """Return the cost of samples that exit at each position, and at the end: of the backbone and all heads run."""
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
        """Return the cost of segments and spans up to each position and up to the end.

        Args:
            stops: positions at which a head runs; no span may cross them. The results for other positions have no
                meaning.
            spans: the spans that may run; None for all spans of the problem.
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
        """Return the first and the last position of every saver and of the base, which ends at ``len(positions)``."""
        ends = [*self.savers, len(self.positions)]
        return list(zip([0, *(end + 1 for end in ends)], ends, strict=False))

    def losses(self, setting: Setting) -> NDArray[np.float32]:
        """Return the loss (N,) float32 of every sample under the setting."""
        found = self.full.loss.copy()
        for position, choice, rows in zip(self.positions, setting, self.leaving(setting), strict=False):
            if choice is not None:
                found[rows] = position.heads[choice.head].loss[rows]
        return found

    def lost(self, setting: Setting) -> NDArray[np.float32]:
        """Return (N,) float32 in [-1, 1]: the loss of every sample minus its loss under the full model."""
        return self.losses(setting) - self.full.loss

    def evaluate(self, setting: Setting) -> Figures:
        """Return the accuracy, loss, cost and exit shares of a setting."""
        count, lost = len(self), self.lost(setting)
        loss = float(lost.sum(dtype=np.float64))
        return Figures(
            accuracy=(count * self.accuracy - loss) / count,
            loss=loss / count,
            cost=self.cost(setting),
            samples=count,
            share_per_exit=tuple(len(rows) / count for rows in self.leaving(setting)),
            # The full model never loses anything against itself.
            loss_error=paired_error(lost) if any(setting) else 0.0,
        )


def part(cost: Cost, samples: NDArray[np.int64]) -> Cost:
    """Return the cost of some of the samples, by their indices (n,)."""
    return cost if isinstance(cost, float) else cost.take(samples)


def total_cost(cost: Cost, samples: NDArray[np.int64] | NDArray[np.bool_], count: int) -> float:
    """Return the sum of the costs of some of the samples, given by indices or a mask; ``count`` is their number."""
    return cost * count if isinstance(cost, float) else float(cost[samples].sum())


def total_gain(gain: NDArray[np.int8], samples: NDArray[np.bool_], steps: int) -> int:
    """Return the sum of the gains of some samples, given by a mask (N,).

    With a single step, gains are 0 or 1 and are counted, which is faster.
    """
    return int(np.count_nonzero(gain & samples)) if steps == 1 else int(gain[samples].sum(dtype=np.int64))


def make_problem(records: Records, costs: CostTable) -> Problem:
    """Arrange records for a search on all of their samples.

    Raises:
        DataError: there are no samples or several variants, a head has no cost, or a head needs another head that was
            not recorded.
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
            raise DataError(f"head {type} at exit {exit} was not recorded, but a recorded head needs it")
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
    """Return the number of steps in which losses are counted: 1 if all are 0 or 1."""
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
