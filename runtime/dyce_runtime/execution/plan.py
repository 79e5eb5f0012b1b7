"""From a configuration to the pieces that run: resolved once, when the active configuration is set."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from dyce_runtime.bundle.configuration import Configuration
from dyce_runtime.bundle.liveness import Leaving, Needed, needed
from dyce_runtime.bundle.manifest import Manifest, Piece
from dyce_runtime.bundle.program import Feed, Run


class Step(msgspec.Struct, frozen=True, eq=False):
    """One stretch of backbone and the decision behind it.

    Attributes:
        body: ids of the pieces that run one after another: spans and segments; none at the second decision of an exit.
        head: id of the head's piece; None where a network ends, in whose body the decision is.
        threshold: float32; a sample leaves if its confidence is strictly above it.
        exit: index into the manifest's exits.
        image: name of the input that a network starts with here; None where it goes on from the step before.
        worth_moving: how many samples of a batch have to have left for the rest to be moved together.
        exits: (1,) int64 ``exit``, to be copied into the result of one sample.
    """

    body: tuple[str, ...]
    head: str | None
    threshold: np.float32
    exit: int
    image: str | None = None
    worth_moving: int = 1
    exits: npt.NDArray[np.int64] = msgspec.field(default_factory=lambda: np.empty(1, np.int64))

    def __post_init__(self) -> None:
        """Fill in ``exits``."""
        msgspec.structs.force_setattr(self, "exits", np.array([self.exit]))


class Plan(msgspec.Struct, frozen=True):
    """A configuration, resolved against a bundle. Immutable: sharing it between threads is safe.

    Attributes:
        exit_ids: of all exits of the bundle, in order.
        budget: the share of the full model's cost that it was chosen for, if it was.
        stages: the steps network by network, each with the name of the input that it starts with.
    """

    configuration: Configuration
    steps: tuple[Step, ...]
    exit_ids: tuple[str, ...]
    budget: float | None = None
    stages: tuple[tuple[str, tuple[Step, ...]], ...] = ()

    def __post_init__(self) -> None:
        """Fill in ``stages``, unless the plan is made from another one with the same steps."""
        if self.stages:
            return
        starts = [(index, step.image) for index, step in enumerate(self.steps) if step.image is not None]
        ends = [*(index for index, _ in starts[1:]), len(self.steps)]
        stages = tuple((name, self.steps[start:end]) for (start, name), end in zip(starts, ends, strict=True))
        msgspec.structs.force_setattr(self, "stages", stages)


def make_plan(
    manifest: Manifest,
    configuration: Configuration,
    available: Collection[str] | None = None,
    worth_moving: Mapping[str, int] = MappingProxyType({}),
    last: str | None = None,
    heads: Mapping[str, str] = MappingProxyType({}),
) -> Plan:
    """Resolve a configuration.

    Args:
        available: ids of the pieces that may run, all segments and heads among them; None are all.
        worth_moving: exit id to how many samples have to have left for the rest to be moved together; 1 if missing.
        last, heads: see :func:`dyce_runtime.bundle.liveness.needed`.

    Raises:
        ConfigurationError: it does not fit the bundle.
    """
    configuration.check(manifest)
    spans = [span for span in manifest.spans if available is None or span.id in available]
    operations = needed(manifest, configuration, last, heads)
    steps: list[Step] = []
    image: str | None = None
    waiting: list[str] = []

    def close(head: str | None, threshold: float, exit: str) -> None:
        nonlocal image
        body, limit = _covered(waiting, spans), np.float32(threshold)
        steps.append(Step(body, head, limit, manifest.exit_index(exit), image, worth_moving.get(exit, 1)))
        image = None
        waiting.clear()

    for operation, after in zip(operations, (*operations[1:], None), strict=True):
        if isinstance(operation, Feed):
            if waiting:  # a network ends here whose answer nobody asked for: something that it carries is needed
                close(None, np.inf, _exit_of(manifest, waiting[-1]))
            image = operation.input
        elif isinstance(operation, Leaving):
            piece = manifest.exit(operation.exit).head(operation.head).piece
            close(None if piece in waiting else piece, operation.threshold, operation.exit)
        elif manifest.piece(operation.piece).role == "segment":
            waiting.append(operation.piece)
        elif not isinstance(after, Leaving):
            close(operation.piece, np.inf, _exit_of(manifest, operation.piece))
    return Plan(configuration, tuple(steps), tuple(exit.id for exit in manifest.exits))


def _exit_of(manifest: Manifest, piece: str) -> str:
    """The exit at which a piece answers."""
    return next(exit.id for exit in manifest.exits for head in exit.heads if head.piece == piece)


def stretches(manifest: Manifest, configuration: Configuration) -> list[tuple[str, ...]]:
    """The segments that a configuration runs one after another with nothing in between, stretch by stretch."""
    found = [step.body for step in make_plan(manifest, configuration, ()).steps]
    return [body for body in found if body]


def pieces_of(plans: Iterable[Plan]) -> list[str]:
    """Ids of all pieces that the plans run, without repetition."""
    ids = [id for plan in plans for step in plan.steps for id in (*step.body, *([step.head] if step.head else []))]
    return list(dict.fromkeys(ids))


def path_macs(
    manifest: Manifest, configuration: Configuration, heads: Mapping[str, str] = MappingProxyType({})
) -> npt.NDArray[np.float64]:
    """(exits,) multiply-accumulates that a sample pays if it leaves at each exit, heads on the way included.

    At exits that are off: what it would pay if all samples had to leave there.

    Args:
        heads: the type of head at exits that are off, by the exit's id; otherwise the cheapest trained one.
    """
    whole = _paid(manifest, needed(manifest, configuration))
    off = [exit.id for exit in manifest.exits if exit.id not in whole]
    ending = {id: _paid(manifest, needed(manifest, configuration, id, heads))[id] for id in off}
    return np.array([(whole | ending)[exit.id] for exit in manifest.exits], np.float64)


def _paid(manifest: Manifest, operations: Iterable[Needed]) -> dict[str, int]:
    """Multiply-accumulates up to each exit at which samples leave, by its id."""
    macs = {piece.id: piece.macs for piece in manifest.pieces}
    found, paid = {}, 0
    for operation in operations:
        if isinstance(operation, Run):
            paid += macs[operation.piece]
        elif isinstance(operation, Leaving):
            found[operation.exit] = paid
    return found


class _Range(NamedTuple):
    """A piece that runs from one segment to another, as indices."""

    first: int
    last: int
    piece: str


def _covered(segments: Sequence[str], spans: Iterable[Piece]) -> tuple[str, ...]:
    """The fewest pieces that equal these segments: spans where they fit."""
    ranges = [_Range(place, place, segment) for place, segment in enumerate(segments)]
    for span in spans:
        for start in range(len(segments) - len(span.covers) + 1):
            if tuple(segments[start : start + len(span.covers)]) == span.covers:
                ranges.append(_Range(start, start + len(span.covers) - 1, span.id))
    return tuple(found.piece for found in cover(ranges, 0, len(segments) - 1))


class Covering(Protocol):
    """Something that runs from one segment to another."""

    @property
    def first(self) -> int:
        """Index of the first segment."""

    @property
    def last(self) -> int:
        """Index of the last segment."""


_Covering = TypeVar("_Covering", bound=Covering)


def cover(pieces: Iterable[_Covering], first: int, last: int) -> list[_Covering]:
    """The fewest of the pieces that run from segment ``first`` to ``last``, found from the end backwards.

    Among the pieces has to be every segment.
    """
    pieces = list(pieces)
    rest: dict[int, list[_Covering]] = {last + 1: []}
    for start in range(last, first - 1, -1):
        fitting = [p for p in pieces if p.first == start and p.last <= last]
        rest[start] = min(([piece, *rest[piece.last + 1]] for piece in fitting), key=len)
    return rest[first]
