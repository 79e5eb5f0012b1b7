"""Resolve a configuration into a plan: the steps that run, computed once, when the configuration becomes active."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol, TypeAlias, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from dyce_runtime.bundle.configuration import Configuration
from dyce_runtime.bundle.manifest import Manifest, Piece
from dyce_runtime.program.liveness import Choosing, Copy, Leaving, Needed, live_after, needed
from dyce_runtime.program.operations import Feed, Run


class Bring(msgspec.Struct, frozen=True, eq=False):
    """Read an input for the samples that have not exited yet.

    Attributes:
        input: name of the input.
        live: the other tensors that a later operation reads.
    """

    input: str
    live: tuple[str, ...]


class LeaveAt(msgspec.Struct, frozen=True, eq=False):
    """Let samples exit whose score is strictly above the threshold.

    Attributes:
        threshold: float32; -inf if all samples exit.
        exit: index into the manifest's exits.
        piece: id of the piece that computed the answer.
        live: the tensors that a later operation reads.
        min_exited_to_compact: the number of samples of a batch that must have exited before the remaining ones are
            compacted.
        exits: ``exit`` as an array (1,) int64, which is copied into the result of a call with one sample.
    """

    threshold: np.float32
    exit: int
    piece: str
    live: tuple[str, ...] = ()
    min_exited_to_compact: int = 1
    exits: npt.NDArray[np.int64] = msgspec.field(default_factory=lambda: np.empty(1, np.int64))

    def __post_init__(self) -> None:
        """Fill in ``exits``."""
        msgspec.structs.force_setattr(self, "exits", np.array([self.exit]))


# A step between the inputs of one network and those of the next.
Step: TypeAlias = Run | Copy | Choosing | LeaveAt


class Stage(msgspec.Struct, frozen=True, eq=False):
    """The inputs that are read at one place of the program, and the steps that run after them."""

    inputs: tuple[Bring, ...]
    steps: tuple[Step, ...]


class Plan(msgspec.Struct, frozen=True):
    """A configuration, resolved against a bundle. Immutable: sharing it between threads is safe.

    Attributes:
        configuration: the configuration that was resolved.
        stages: what runs, in order.
        exit_ids: ids of all exits of the bundle, in order.
        budget: the fraction of the full model's cost for which the configuration was chosen; None if it was chosen
            otherwise.
    """

    configuration: Configuration
    stages: tuple[Stage, ...]
    exit_ids: tuple[str, ...]
    budget: float | None = None

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps of all stages, in order."""
        return tuple(step for stage in self.stages for step in stage.steps)

    @property
    def leaves(self) -> tuple[LeaveAt, ...]:
        """The steps at which samples can exit, in order."""
        return tuple(step for step in self.steps if isinstance(step, LeaveAt))


def make_plan(
    manifest: Manifest,
    configuration: Configuration,
    available: Collection[str] | None = None,
    min_exited_to_compact: Mapping[str, int] = MappingProxyType({}),
    last: str | None = None,
    heads: Mapping[str, str] = MappingProxyType({}),
) -> Plan:
    """Resolve a configuration.

    Args:
        manifest: of the bundle.
        configuration: the configuration to resolve.
        available: ids of the spans that may run, among which may be other pieces; None allows all spans.
        min_exited_to_compact: exit id to the number of samples that must have exited before the remaining ones are
            compacted; 1 for an exit without an entry.
        last, heads: see :func:`dyce_runtime.program.liveness.needed`.

    Raises:
        ConfigurationError: the configuration does not fit the bundle.
    """
    configuration.check(manifest)
    spans = [span for span in manifest.spans if available is None or span.id in available]
    pieces = {piece.id: piece for piece in manifest.pieces}
    operations = [*_with_spans(needed(manifest, configuration, last, heads), pieces, spans)]
    stages: list[tuple[list[Bring], list[Step]]] = []
    for operation, live in zip(operations, live_after(operations, pieces), strict=True):
        if isinstance(operation, Feed):
            if not stages or stages[-1][1]:
                stages.append(([], []))
            stages[-1][0].append(Bring(operation.input, tuple(name for name in live if name != operation.input)))
        elif isinstance(operation, Leaving):
            exit = manifest.exit(operation.exit)
            piece = exit.head(operation.head).piece
            most = min_exited_to_compact.get(exit.id, 1)
            threshold, index = np.float32(operation.threshold), manifest.exit_index(exit.id)
            stages[-1][1].append(LeaveAt(threshold, index, piece, live, most))
        else:
            stages[-1][1].append(operation)
    made = tuple(Stage(tuple(inputs), tuple(steps)) for inputs, steps in stages)
    return Plan(configuration, made, tuple(exit.id for exit in manifest.exits))


def _with_spans(operations: Iterable[Needed], pieces: Mapping[str, Piece], spans: Sequence[Piece]) -> Iterator[Needed]:
    """Yield the operations, with spans in place of consecutive segments where they fit."""
    waiting: list[str] = []
    for operation in operations:
        if isinstance(operation, Run) and pieces[operation.piece].role == "segment":
            waiting.append(operation.piece)
            continue
        yield from map(Run, _covered(waiting, spans))
        waiting.clear()
        yield operation
    yield from map(Run, _covered(waiting, spans))


def segment_runs(manifest: Manifest, configuration: Configuration) -> list[tuple[str, ...]]:
    """Return the maximal runs of consecutive segments that a configuration runs with nothing in between."""
    found: list[list[str]] = [[]]
    for step in make_plan(manifest, configuration, ()).steps:
        if isinstance(step, Run) and manifest.piece(step.piece).role == "segment":
            found[-1].append(step.piece)
        else:
            found.append([])
    return [tuple(run) for run in found if run]


def pieces_of(plans: Iterable[Plan]) -> list[str]:
    """Return the ids of all pieces that the plans may run, without repetition."""
    ids: list[str] = []
    for step in (step for plan in plans for step in plan.steps):
        ids += [step.piece] if isinstance(step, Run) else []
        ids += [case.piece for case in step.cases if case.piece] if isinstance(step, Choosing) else []
    return list(dict.fromkeys(ids))


def path_macs(
    manifest: Manifest, configuration: Configuration, heads: Mapping[str, str] = MappingProxyType({})
) -> npt.NDArray[np.float64]:
    """Return (exits,) the multiply-accumulates of a sample that exits at each exit, including the heads before it.

    For an exit that is off, this is the cost if all samples had to exit there. At a choice, the most expensive case
    counts.

    Args:
        manifest: of the bundle.
        configuration: the configuration that runs.
        heads: exit id to the type of head to use if the exit is off; without an entry, the cheapest trained one.
    """
    whole = _paid(manifest, needed(manifest, configuration))
    off = [exit.id for exit in manifest.exits if exit.id not in whole]
    ending = {id: _paid(manifest, needed(manifest, configuration, id, heads))[id] for id in off}
    return np.array([(whole | ending)[exit.id] for exit in manifest.exits], np.float64)


def _paid(manifest: Manifest, operations: Iterable[Needed]) -> dict[str, int]:
    """Return exit id to the multiply-accumulates up to that exit, for the exits in the operations."""
    macs = {piece.id: piece.macs for piece in manifest.pieces}
    found, paid = {}, 0
    for operation in operations:
        if isinstance(operation, Run):
            paid += macs[operation.piece]
        elif isinstance(operation, Choosing):
            paid += max(0 if case.piece is None else macs[case.piece] for case in operation.cases)
        elif isinstance(operation, Leaving):
            found[operation.exit] = paid
    return found


class _Range(NamedTuple):
    """A piece that covers a range of segments, given by the indices of the first and the last one."""

    first: int
    last: int
    piece: str


def _covered(segments: Sequence[str], spans: Iterable[Piece]) -> tuple[str, ...]:
    """Return the smallest sequence of pieces that equals these segments, using spans where they fit."""
    ranges = [_Range(place, place, segment) for place, segment in enumerate(segments)]
    for span in spans:
        for start in range(len(segments) - len(span.covers) + 1):
            if tuple(segments[start : start + len(span.covers)]) == span.covers:
                ranges.append(_Range(start, start + len(span.covers) - 1, span.id))
    return tuple(found.piece for found in minimal_cover(ranges, 0, len(segments) - 1))


class Covering(Protocol):
    """Something that covers a range of segments."""

    @property
    def first(self) -> int:
        """Index of the first segment."""

    @property
    def last(self) -> int:
        """Index of the last segment."""


_Covering = TypeVar("_Covering", bound=Covering)


def minimal_cover(pieces: Iterable[_Covering], first: int, last: int) -> list[_Covering]:
    """Return the smallest sequence of pieces that covers the segments from ``first`` to ``last`` exactly.

    Found by dynamic programming from the end. The pieces must include every single segment.
    """
    pieces = list(pieces)
    rest: dict[int, list[_Covering]] = {last + 1: []}
    for start in range(last, first - 1, -1):
        fitting = [p for p in pieces if p.first == start and p.last <= last]
        rest[start] = min(([piece, *rest[piece.last + 1]] for piece in fitting), key=len)
    return rest[first]
