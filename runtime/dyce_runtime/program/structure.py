"""Derive the structure of a bundle from its program: the segments before each exit, and what each head needs."""

from __future__ import annotations

from dyce_runtime.bundle.configuration import Configuration
from dyce_runtime.bundle.manifest import Manifest, Piece
from dyce_runtime.program.liveness import needed
from dyce_runtime.program.operations import Leave, Run


def bodies(manifest: Manifest) -> dict[str, tuple[Piece, ...]]:
    """Map each exit id to the segments between that exit and the previous one (or the start of its network)."""
    found: dict[str, tuple[Piece, ...]] = {}
    waiting: list[Piece] = []
    for operation in manifest.program:
        if isinstance(operation, Run) and (piece := manifest.piece(operation.piece)).role == "segment":
            waiting.append(piece)
        elif isinstance(operation, Leave) and operation.exit not in found:
            found[operation.exit], waiting = tuple(waiting), []
    return found


def segments_of(manifest: Manifest, network: str) -> tuple[Piece, ...]:
    """Return the segments of a network, in order. Raises KeyError if there is no such network."""
    exits = {one.id: one.exits for one in manifest.networks}[network]
    own = bodies(manifest)
    return tuple(piece for exit in exits for piece in own[exit])


def ends_of(manifest: Manifest, span: Piece) -> tuple[str | None, str]:
    """Return the ids of the exits between which a span (a piece that equals several segments) runs.

    Returns:
        the exit after which it starts, None at the start of its network, and the exit at its end.

    Raises:
        KeyError: its segments are not part of any network.
    """
    own = bodies(manifest)
    for network in manifest.networks:
        starts = dict(zip(network.exits, (None, *network.exits), strict=False))
        first = [exit for exit in network.exits if span.covers[0] in [piece.id for piece in own[exit]]]
        last = [exit for exit in network.exits if span.covers[-1] in [piece.id for piece in own[exit]]]
        if first and last:
            return starts[first[0]], last[0]
    raise KeyError(span.id)


def needed_heads(manifest: Manifest) -> dict[str, dict[str, tuple[tuple[str, str], ...]]]:
    """Find the heads that read tensors of earlier heads.

    Returns:
        exit id to head type to the (exit id, head type) of the earlier heads that it needs, in execution order. Heads
        that need no others are left out.
    """
    of_piece = {head.piece: (exit.id, head.type) for exit in manifest.exits[:-1] for head in exit.heads}
    found: dict[str, dict[str, tuple[tuple[str, str], ...]]] = {}
    for exit in manifest.exits[:-1]:
        for head in exit.heads:
            operations = needed(manifest, Configuration(""), exit.id, {exit.id: head.type})
            runs = [operation.piece for operation in operations if isinstance(operation, Run)]
            others = tuple(of_piece[id] for id in runs if id in of_piece and id != head.piece)
            if others:
                found.setdefault(exit.id, {})[head.type] = others
    return found
