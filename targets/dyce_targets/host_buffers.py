"""Memory for the activations of a call on a CPU, made once and used again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from dyce_runtime.contracts import PieceSpec
from dyce_runtime.manifest import DECISION, TensorSpec

# What vector instructions like; a cache line.
_ALIGNMENT = 64


class HostBuffers:
    """Two sides, one that a piece reads from and one that it writes to, and a decision.

    Attributes:
        capacity: samples that fit in.
        logits: (capacity, classes) float32.
        confidence: (capacity,) float32.
        label: (capacity,) int64.
    """

    def __init__(self, pieces: Iterable[PieceSpec], capacity: int) -> None:
        self.capacity = capacity
        pieces = list(pieces)
        classes = next(int(spec.shape[1]) for p in pieces for spec in p.outputs if spec.name == DECISION[0])
        self.logits = np.empty((capacity, classes), np.float32)
        self.confidence = np.empty(capacity, np.float32)
        self.label = np.empty(capacity, np.int64)
        decision: tuple[npt.NDArray[Any], ...] = (self.logits, self.confidence, self.label)
        self._decision = dict(zip(DECISION, decision, strict=True))
        between = [p.outputs for p in pieces if not _decides(p.outputs)]
        self._made = {spec.name for specs in between for spec in specs}
        size = max((sum(self._size(spec) for spec in specs) for specs in between), default=0)
        self._sides = (_aligned(size), _aligned(size))

    def are_images(self, specs: Sequence[TensorSpec]) -> bool:
        """Whether these are what a call starts with: no piece makes them."""
        return specs[0].name not in self._made

    def views(self, specs: Sequence[TensorSpec], side: int, rows: int) -> list[npt.NDArray[Any]]:
        """Arrays of ``rows`` samples over the tensors of a seam on one side, or over the decision."""
        if _decides(specs):
            return [self._decision[spec.name][:rows] for spec in specs]
        found: list[npt.NDArray[Any]] = []
        start = 0
        for spec in specs:
            whole = self._sides[side][start : start + self._bytes(spec)].view(spec.dtype)
            found.append(whole.reshape(self.capacity, *spec.shape[1:])[:rows])
            start += self._size(spec)
        return found

    def _bytes(self, spec: TensorSpec) -> int:
        return self.capacity * prod(map(int, spec.shape[1:])) * np.dtype(spec.dtype).itemsize

    def _size(self, spec: TensorSpec) -> int:
        return -(-self._bytes(spec) // _ALIGNMENT) * _ALIGNMENT


def _decides(specs: Sequence[TensorSpec]) -> bool:
    return specs[0].name == DECISION[0]


def _aligned(size: int) -> npt.NDArray[np.uint8]:
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size]
