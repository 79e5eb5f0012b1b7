"""Plan the memory of tensors: two tensors may share memory if they are never needed at the same time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import NamedTuple

import numpy as np

from dyce_runtime.bundle.manifest import Manifest, Piece, TensorSpec
from dyce_runtime.program.liveness import effect_of
from dyce_runtime.program.operations import Run


class TensorLife(NamedTuple):
    """A tensor and its lifetime.

    Attributes:
        spec: the tensor.
        places: indices of the operations of the program during which it may be needed. Every span has an additional
            index of its own, after those of the program.
    """

    spec: TensorSpec
    places: frozenset[int]


def lives(manifest: Manifest, spans: Sequence[Piece]) -> tuple[TensorLife, ...]:
    """Return all tensors of the program with their lifetimes, from the first operation that uses them to the last.

    Args:
        manifest: of the bundle.
        spans: the spans that may run instead of segments. While one runs, the tensors inside it are not needed.
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
    """Return the bytes that one sample of a tensor takes."""
    return prod(map(int, spec.shape[1:])) * np.dtype(spec.dtype).itemsize


def lay_out(tensors: Sequence[TensorLife], rows: int, alignment: int) -> tuple[Mapping[str, int], int]:
    """Place tensors in one block of memory.

    The largest tensors are placed first, each at the lowest offset that is free during its lifetime.

    Args:
        tensors: the tensors and their lifetimes.
        rows: number of samples that each has room for.
        alignment: alignment of every offset, in bytes.

    Returns:
        name to offset in bytes, and the size of the block in bytes.
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
