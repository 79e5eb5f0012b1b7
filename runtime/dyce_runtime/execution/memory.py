"""Where tensors lie in memory: two share a place if nothing of one is needed any more when the other is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import NamedTuple

import numpy as np

from dyce_runtime.bundle.manifest import Manifest, Piece, TensorSpec
from dyce_runtime.program.liveness import effect_of
from dyce_runtime.program.operations import Run


class TensorLife(NamedTuple):
    """A tensor and the places of the program, as numbers, at which it may be needed. A span is a place of its own."""

    spec: TensorSpec
    places: frozenset[int]


def lives(manifest: Manifest, spans: Sequence[Piece]) -> tuple[TensorLife, ...]:
    """All tensors that are written or fed, from where they are made to where they are read last.

    Args:
        spans: those that may run instead of segments. Where one runs, what is inside it is not needed.
    """
    pieces = {piece.id: piece for piece in manifest.pieces}
    places: dict[str, tuple[int, int]] = {}
    of_piece: dict[str, int] = {}
    for place, operation in enumerate(manifest.program):
        reads, writes = effect_of(operation, pieces)
        for name in (*reads, *writes):
            places[name] = places.get(name, (place,))[0], place
        if isinstance(operation, Run):
            of_piece[operation.piece] = place
    found = {name: set(range(first, last + 1)) for name, (first, last) in places.items()}
    for place, span in enumerate(spans, start=len(manifest.program)):
        start, end = of_piece[span.covers[0]], of_piece[span.covers[-1]]
        for name, (first, last) in places.items():
            if name in (*span.reads, *span.writes) or (first < start and last > end):
                found[name].add(place)
    return tuple(TensorLife(spec, frozenset(found[spec.name])) for spec in manifest.specs(found))


def sample_bytes(spec: TensorSpec) -> int:
    """Bytes of one sample."""
    return prod(map(int, spec.shape[1:])) * np.dtype(spec.dtype).itemsize


def lay_out(tensors: Sequence[TensorLife], rows: int, alignment: int) -> tuple[Mapping[str, int], int]:
    """The offset of every tensor in one block of memory, and the size of the block in bytes.

    The largest are placed first, each at the lowest place that is free while it lives.

    Args:
        rows: samples that fit in.
        alignment: of every offset, in bytes.
    """
    placed: list[tuple[int, int, TensorLife]] = []
    offsets: dict[str, int] = {}
    for tensor in sorted(tensors, key=lambda tensor: (-sample_bytes(tensor.spec), tensor.spec.name)):
        size = -(-rows * sample_bytes(tensor.spec) // alignment) * alignment
        start = 0
        for begin, end, other in sorted(placed, key=lambda place: place[0]):
            if tensor.places & other.places and begin < start + size and start < end:
                start = end
        placed.append((start, start + size, tensor))
        offsets[tensor.spec.name] = start
    return offsets, max((end for _, end, _ in placed), default=0)
