"""What a configuration runs of a program: an operation is needed if a later one that is needed reads what it writes.

A head that leaves tensors for a later one therefore runs without samples leaving there, and a saver of which nothing
is on disappears by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TypeAlias

import msgspec
import numpy as np

from dyce_runtime.bundle.configuration import Configuration
from dyce_runtime.bundle.manifest import ANSWER, Exit, Head, Manifest, Piece
from dyce_runtime.bundle.program import Feed, Leave, Run

_NO_HEADS: Mapping[str, str] = MappingProxyType({})


class Leaving(msgspec.Struct, frozen=True):
    """A place where samples leave if their score is strictly above the threshold, a float32.

    At -inf all of them leave: every score is above it.
    """

    exit: str
    head: str
    threshold: float


Needed: TypeAlias = Feed | Run | Leaving


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
        reads, writes = _effect(operation, pieces)
        if isinstance(operation, Leaving) or not live.isdisjoint(writes):
            live = live.difference(writes).union(reads)
            found.append(operation)
    return tuple(reversed(found))


def _settled(
    manifest: Manifest, configuration: Configuration, last: str | None, heads: Mapping[str, str]
) -> Iterator[Needed]:
    """The program up to where all samples leave, without the places where none can."""
    for operation in manifest.program:
        if not isinstance(operation, Leave):
            yield operation
            continue
        on = configuration.exits.get(operation.exit)
        if operation.exit == last and not operation.always:
            type = on.head if on is not None else heads.get(last) or _cheapest(manifest, manifest.exit(last)).type
            if operation.head == type:
                yield Leaving(last, type, -np.inf)
                return
        elif operation.always:
            yield Leaving(operation.exit, operation.head, -np.inf)
            return
        elif on is not None and on.head == operation.head:
            yield Leaving(operation.exit, operation.head, float(np.float32(on.threshold)))


def _effect(operation: Needed, pieces: Mapping[str, Piece]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The tensors that an operation reads and those that it writes."""
    if isinstance(operation, Run):
        piece = pieces[operation.piece]
        return piece.reads, piece.writes
    return ((), (operation.input,)) if isinstance(operation, Feed) else (ANSWER, ())


def _cheapest(manifest: Manifest, exit: Exit) -> Head:
    trained = [head for head in exit.heads if head.trained] or exit.heads
    return min(trained, key=lambda head: head_macs(manifest, head))


def head_macs(manifest: Manifest, head: Head) -> int:
    """What a head adds: nothing where it is the end of a segment, which has it."""
    piece = manifest.piece(head.piece)
    return piece.macs if piece.role == "head" else 0
