"""Memory for the activations of a call on a CPU, made once and used again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from dyce_runtime.bundle.manifest import LOGITS, TensorSpec
from dyce_runtime.execution.contracts import PieceSpec, carried

# Bytes of an image that is copied sooner than its address is bound.
_SMALL = 1 << 16
# What vector instructions like; a cache line.
_ALIGNMENT = 64


class HostBuffers:
    """Two sides, one that a piece reads from and one that it writes to, a decision, and what is left for later.

    Attributes:
        capacity: samples that fit in.
        small: for every input with small images, by name, (1, C, H, W) float32 for one of them.
        logits: (capacity, classes) float32.
        confidence: (capacity,) float32.
        label: (capacity,) int64.
        left: by name, (capacity, ...) what pieces leave for later ones.
    """

    def __init__(self, pieces: Iterable[PieceSpec], capacity: int) -> None:
        self.capacity = capacity
        pieces = list(pieces)
        classes = next(int(spec.shape[1]) for p in pieces for spec in p.outputs if spec.name == LOGITS)
        self.logits = np.empty((capacity, classes), np.float32)
        self.confidence = np.empty(capacity, np.float32)
        self.label = np.empty(capacity, np.int64)
        between = [p.outputs for p in pieces if not _decides(p.outputs)]
        left = (spec for piece in pieces for spec in carried(piece.outputs))
        self.left = {spec.name: np.zeros((capacity, *map(int, spec.shape[1:])), spec.dtype) for spec in left}
        self._made = {spec.name for specs in between for spec in specs}
        images = {p.inputs[0].name: p.inputs[0].shape[1:] for p in pieces if self.are_images(p.inputs)}
        made = {name: np.empty((1, *map(int, shape)), np.float32) for name, shape in images.items()}
        self.small = {name: image for name, image in made.items() if image.nbytes <= _SMALL}
        size = max((sum(self._size(spec) for spec in specs) for specs in between), default=0)
        self._sides = (_aligned(size), _aligned(size))

    def are_images(self, specs: Sequence[TensorSpec]) -> bool:
        """Whether a network starts with these: no piece makes them."""
        return bool(specs) and specs[0].name not in self._made

    def decision(self, rows: int) -> list[npt.NDArray[Any]]:
        """The first rows of logits, confidences and labels."""
        return [array[:rows] for array in (self.logits, self.confidence, self.label)]

    def views(self, specs: Sequence[TensorSpec], side: int, rows: int) -> list[npt.NDArray[Any]]:
        """Arrays of ``rows`` samples over the tensors of a seam on one side, over the decision, or the image.

        What is left for later has one place, whatever the side.
        """
        if _decides(specs):
            return [*self.decision(rows), *(self.left[spec.name][:rows] for spec in carried(specs))]
        if self.are_images(specs):
            return [self.small[specs[0].name]]
        found: list[npt.NDArray[Any]] = []
        start = 0
        for spec in specs:
            if spec.name in self.left:
                found.append(self.left[spec.name][:rows])
                continue
            whole = self._sides[side][start : start + self._bytes(spec)].view(spec.dtype)
            found.append(whole.reshape(self.capacity, *spec.shape[1:])[:rows])
            start += self._size(spec)
        return found

    def _bytes(self, spec: TensorSpec) -> int:
        return self.capacity * prod(map(int, spec.shape[1:])) * np.dtype(spec.dtype).itemsize

    def _size(self, spec: TensorSpec) -> int:
        return -(-self._bytes(spec) // _ALIGNMENT) * _ALIGNMENT


def _decides(specs: Sequence[TensorSpec]) -> bool:
    return bool(specs) and specs[0].name == LOGITS


def _aligned(size: int) -> npt.NDArray[np.uint8]:
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size]
