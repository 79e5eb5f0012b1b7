"""From a configuration to the pieces that run: resolved once, when the knob is turned.

A saver runs as far as its last exit that is on, and not at all if none is. A head may read what heads before it, or
the end of a saver, have left: these run as well, and nothing leaves there unless they are on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Protocol, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from dyce_runtime.bundle.configuration import Configuration
from dyce_runtime.bundle.manifest import OWN, Exit, Manifest, Piece


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
) -> Plan:
    """Resolve a configuration.

    Args:
        available: ids of the pieces that may run, all segments and heads among them; None are all.
        worth_moving: exit id to how many samples have to have left for the rest to be moved together; 1 if missing.

    Raises:
        ConfigurationError: it does not fit the bundle.
    """
    configuration.check(manifest)
    bodies = [p for p in manifest.pieces if p.kind != "head" and (available is None or p.id in available)]
    starts = {network.first: network.input.name for network in manifest.networks}
    decided = decisions(manifest, configuration)
    steps = []
    for first, last in stretches(manifest, configuration):
        exit = manifest.exits[last]
        body = tuple(piece.id for piece in cover(bodies, first, last))
        image = starts.get(first)
        for type in decided[last]:
            setting = configuration.exits.get(exit.id)
            on = setting is not None and setting.head == type
            threshold = np.float32(setting.threshold if on else np.inf)  # type: ignore[union-attr]
            head = None if type == OWN else next(head.piece for head in exit.heads if head.type == type)
            steps.append(Step(body, head, threshold, last, image, worth_moving.get(exit.id, 1)))
            body, image = (), None
    return Plan(configuration, tuple(steps), tuple(exit.id for exit in manifest.exits))


def stretches(manifest: Manifest, configuration: Configuration) -> list[tuple[int, int]]:
    """The first and the last segment of every stretch of backbone between decisions, in order."""
    decided, found = decisions(manifest, configuration), []
    for network in manifest.networks:
        first = network.first
        for index in range(network.first, network.last + 1):
            if index in decided:
                found.append((first, index))
                first = index + 1
    return found


def decisions(manifest: Manifest, configuration: Configuration) -> dict[int, list[str]]:
    """Index of an exit to the types of the heads that run there; ``own`` at the end of the base, too.

    Of several the last is the one that is on, unless none is.
    """
    needed = needs(manifest)
    found: dict[int, list[str]] = {manifest.base.last: [OWN]}
    for exit, setting in configuration.exits.items():
        for id, type in needed.get(exit, {}).get(setting.head, ()):
            own = found.setdefault(manifest.exit_index(id), [])
            own += [] if type in own else [type]
    for exit, setting in configuration.exits.items():
        own = found.setdefault(manifest.exit_index(exit), [])
        own[:] = [*(type for type in own if type != setting.head), setting.head]
    return found


def needs(manifest: Manifest) -> dict[str, dict[str, tuple[tuple[str, str], ...]]]:
    """Exit id and type of a head that reads what others have left to the exits and types of these, in order."""
    made_by = {spec.name: piece for piece in manifest.pieces if piece.kind != "span" for spec in piece.left}
    if not made_by:
        return {}
    places = {head.piece: (exit.id, head.type) for exit in manifest.exits for head in exit.heads}
    found: dict[str, dict[str, tuple[tuple[str, str], ...]]] = {}
    for piece in (piece for piece in manifest.pieces if piece.kind == "head"):
        read = sorted(_makers(piece, made_by), key=lambda maker: maker.first)
        if read:
            exit, type = places[piece.id]
            found.setdefault(exit, {})[type] = tuple(places[maker.id] for maker in read)
    return found


def _makers(piece: Piece, made_by: Mapping[str, Piece]) -> list[Piece]:
    """The pieces whose tensors it reads, and those whose tensors they read."""
    found: dict[str, Piece] = {}
    waiting = [piece]
    while waiting:
        for spec in waiting.pop().inputs:
            maker = made_by.get(spec.name)
            if maker is not None and maker.id not in found:
                found[maker.id] = maker
                waiting.append(maker)
    return list(found.values())


def pieces_of(plans: Iterable[Plan]) -> list[str]:
    """Ids of all pieces that the plans run, without repetition."""
    ids = [id for plan in plans for step in plan.steps for id in (*step.body, *([step.head] if step.head else []))]
    return list(dict.fromkeys(ids))


def path_macs(manifest: Manifest, configuration: Configuration) -> npt.NDArray[np.float64]:
    """(exits,) multiply-accumulates that a sample pays if it leaves at each exit, heads on the way included.

    At an exit that is off: what it would pay up to there.
    """
    decided, segments = decisions(manifest, configuration), manifest.segments
    total, before = [], 0
    for network in manifest.networks:
        paid = before
        for index in range(network.first, network.last + 1):
            exit, types = manifest.exits[index], decided.get(index, [])
            paid += segments[index].macs + sum(head_macs(manifest, exit, type) for type in types)
            total.append(paid)
            if types:
                before = paid
    return np.array(total, np.float64)


def head_macs(manifest: Manifest, exit: Exit, type: str) -> int:
    """What a head adds: nothing at the end of a saver, whose last segment has it."""
    return 0 if type == OWN else manifest.piece(next(head.piece for head in exit.heads if head.type == type)).macs


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
