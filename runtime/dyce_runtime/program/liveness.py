"""Find the operations of a program that a configuration needs, by liveness analysis.

An operation is needed if it lets samples exit, or if a later needed operation reads a tensor that it writes. A head
whose tensors a later head reads therefore runs even if its own exit is off, and a saver (a smaller network that runs
before the base) without active exits is dropped.
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
    """Make tensors (keys) copies of others (values)."""

    copies: dict[str, str]


class Choosing(msgspec.Struct, frozen=True):
    """Send each sample to case k, where k is the number of cut points (float32) strictly below its gate value."""

    gate: str
    by: str
    cases: tuple[Case, ...]
    cut_points: tuple[float, ...]


class Leaving(msgspec.Struct, frozen=True):
    """Let samples exit whose score is strictly above the threshold, a float32.

    At -inf all samples exit.
    """

    exit: str
    head: str
    threshold: float


Needed: TypeAlias = Feed | Run | Copy | Choosing | Leaving


def needed(
    manifest: Manifest, configuration: Configuration, last: str | None = None, heads: Mapping[str, str] = _NO_HEADS
) -> tuple[Needed, ...]:
    """Return the operations that a configuration runs, in order; at the last one all remaining samples exit.

    Args:
        configuration: has to fit the bundle.
        last: id of an exit at which all remaining samples exit, instead of at the final one.
        heads: exit id to the type of head used at ``last`` if the configuration has that exit off. Without an entry,
            the cheapest trained head is used.
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
    """Return the names of the tensors that an operation reads, and of those that it writes."""
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
    """Return the operation that a case performs."""
    return Copy(case.copies) if case.piece is None else Run(case.piece)


def _settled(
    manifest: Manifest, configuration: Configuration, last: str | None, heads: Mapping[str, str]
) -> Iterator[Needed]:
    """Yield the program up to the exit at which all samples exit, without the exits that are off."""
    for operation in manifest.program:
        if isinstance(operation, Choose):
            yield choosing(operation, configuration.gates)
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


def choosing(choose: Choose, gates: Mapping[str, tuple[float, ...] | int]) -> Choosing | Run | Copy:
    """Return a choice with the cut points that gates are set to, or the only operation left if they fix its case."""
    setting = gates.get(choose.gate, choose.cut_points)
    if isinstance(setting, int):
        return operation_of(choose.cases[setting])
    return Choosing(choose.gate, choose.by, choose.cases, tuple(float(np.float32(point)) for point in setting))


def _head_at(manifest: Manifest, configuration: Configuration, exit: str, heads: Mapping[str, str]) -> str:
    """Return the type of the head with which all samples exit at an exit."""
    on = configuration.exits.get(exit)
    return on.head if on is not None else heads.get(exit) or _cheapest(manifest, manifest.exit(exit)).type


def _cheapest(manifest: Manifest, exit: Exit) -> Head:
    trained = [head for head in exit.heads if head.trained] or exit.heads
    return min(trained, key=lambda head: head_macs(manifest, head))


def head_macs(manifest: Manifest, head: Head) -> int:
    """Return the multiply-accumulates that a head adds: 0 if a segment ends in it and already includes them."""
    piece = manifest.piece(head.piece)
    return piece.macs if piece.role == "head" else 0


def live_after(operations: Iterable[Needed], pieces: Mapping[str, Piece]) -> list[tuple[str, ...]]:
    """Return, for each operation, the tensors that a later one reads before anything writes them again, sorted."""
    live: set[str] = set()
    found: list[tuple[str, ...]] = []
    for operation in reversed([*operations]):
        found.append(tuple(sorted(live)))
        reads, writes = effect_of(operation, pieces)
        live = live.difference(writes).union(reads)
    return found[::-1]
