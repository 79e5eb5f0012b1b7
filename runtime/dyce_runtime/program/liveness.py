"""What a configuration runs of a program: an operation is needed if a later one that is needed reads what it writes.

A head that leaves tensors for a later one therefore runs without samples leaving there, and a saver of which nothing
is on disappears by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import TypeAlias

import msgspec
import numpy as np

from dyce_runtime.bundle.configuration import Configuration
from dyce_runtime.bundle.manifest import ANSWER, Exit, Head, Manifest, Piece
from dyce_runtime.program.operations import Case, Choose, Feed, Leave, Run

_NO_HEADS: Mapping[str, str] = MappingProxyType({})


class Copy(msgspec.Struct, frozen=True):
    """Tensors (keys) become copies of others (values)."""

    copies: dict[str, str]


class Choosing(msgspec.Struct, frozen=True):
    """Each sample takes the case with as many cut points, which are float32, strictly below its value."""

    gate: str
    by: str
    cases: tuple[Case, ...]
    cut_points: tuple[float, ...]


class Leaving(msgspec.Struct, frozen=True):
    """A place where samples leave if their score is strictly above the threshold, a float32.

    At -inf all of them leave: every score is above it.
    """

    exit: str
    head: str
    threshold: float


Needed: TypeAlias = Feed | Run | Copy | Choosing | Leaving


def needed(
    manifest: Manifest, configuration: Configuration, last: str | None = None, heads: Mapping[str, str] = _NO_HEADS
) -> tuple[Needed, ...]:
    """The operations that a configuration runs, in order; the last one lets all samples leave.

    Args:
        configuration: has to fit the bundle.
        last: id of an exit at which all samples leave that get there, instead of at the final one.
        heads: the type of head there if the configuration has that exit off; otherwise the cheapest trained one.
    """
    pieces = {piece.id: piece for piece in manifest.pieces}
    live: set[str] = set()
    found: list[Needed] = []
    for operation in reversed([*_settled(manifest, configuration, last, heads)]):
        reads, writes = effect_of(operation, pieces)
        if isinstance(operation, Leaving) or not live.isdisjoint(writes):
            live = live.difference(writes).union(reads)
            found.append(operation)
    return tuple(reversed(found))


def effect_of(operation: Needed | Choose | Leave, pieces: Mapping[str, Piece]) -> tuple[set[str], set[str]]:
    """The tensors that an operation reads and those that it writes."""
    if isinstance(operation, Feed):
        return set(), {operation.input}
    if isinstance(operation, Run):
        piece = pieces[operation.piece]
        return set(piece.reads), set(piece.writes)
    if isinstance(operation, Copy):
        return set(operation.copies.values()), set(operation.copies)
    if isinstance(operation, Choose | Choosing):
        effects = [effect_of(operation_of(case), pieces) for case in operation.cases]
        return set.union({operation.by}, *(reads for reads, _ in effects)), effects[0][1]
    return set(ANSWER), set()


def operation_of(case: Case) -> Run | Copy:
    """What a case does."""
    return Copy(case.copies) if case.piece is None else Run(case.piece)


def _settled(
    manifest: Manifest, configuration: Configuration, last: str | None, heads: Mapping[str, str]
) -> Iterator[Needed]:
    """The program up to where all samples leave, without the places where none can."""
    for operation in manifest.program:
        if isinstance(operation, Choose):
            yield _choosing(operation, configuration)
        elif not isinstance(operation, Leave):
            yield operation
        elif operation.exit == last and not operation.always:
            type = _head_at(manifest, configuration, last, heads)
            if operation.head == type:
                yield Leaving(last, type, -np.inf)
                return
        elif operation.always:
            yield Leaving(operation.exit, operation.head, -np.inf)
            return
        else:
            on = configuration.exits.get(operation.exit)
            if on is not None and on.head == operation.head:
                yield Leaving(operation.exit, operation.head, float(np.float32(on.threshold)))


def _choosing(choose: Choose, configuration: Configuration) -> Needed:
    """A choice as a configuration sets it; with a fixed case there is nothing to choose."""
    setting = configuration.gates.get(choose.gate, choose.cut_points)
    if isinstance(setting, int):
        return operation_of(choose.cases[setting])
    return Choosing(choose.gate, choose.by, choose.cases, tuple(float(np.float32(point)) for point in setting))


def _head_at(manifest: Manifest, configuration: Configuration, exit: str, heads: Mapping[str, str]) -> str:
    """The type of head by which all samples leave at an exit."""
    on = configuration.exits.get(exit)
    return on.head if on is not None else heads.get(exit) or _cheapest(manifest, manifest.exit(exit)).type


def _cheapest(manifest: Manifest, exit: Exit) -> Head:
    trained = [head for head in exit.heads if head.trained] or exit.heads
    return min(trained, key=lambda head: head_macs(manifest, head))


def head_macs(manifest: Manifest, head: Head) -> int:
    """What a head adds: nothing where it is the end of a segment, which has it."""
    piece = manifest.piece(head.piece)
    return piece.macs if piece.role == "head" else 0


def live_after(operations: Iterable[Needed], pieces: Mapping[str, Piece]) -> list[tuple[str, ...]]:
    """For each of the operations the tensors that a later one reads before anything writes them again."""
    live: set[str] = set()
    found: list[tuple[str, ...]] = []
    for operation in reversed([*operations]):
        found.append(tuple(sorted(live)))
        reads, writes = effect_of(operation, pieces)
        live = live.difference(writes).union(reads)
    return found[::-1]
