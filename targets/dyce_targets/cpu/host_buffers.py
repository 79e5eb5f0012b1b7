"""Memory for the tensors of a call on a CPU, made once and used again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dyce_runtime.execution.memory import TensorLife, lay_out, sample_bytes

# Bytes of an input that is copied sooner than its address is bound.
_SMALL = 1 << 16
# What vector instructions like; a cache line.
_ALIGNMENT = 64


class HostBuffers:
    """One block of memory in which every tensor has its place; inputs are read where they are.

    Attributes:
        capacity: samples that fit in.
        tensors: by name, (capacity, ...), all but the inputs.
        inputs: names of the tensors that come from outside.
        small: of these by name, where one sample is small, (1, ...) to copy it to.
    """

    def __init__(self, tensors: Sequence[TensorLife], capacity: int) -> None:
        self.capacity = capacity
        self.inputs = frozenset(life.spec.name for life in tensors if life.spec.lifetime == "input")
        made = [life for life in tensors if life.spec.name not in self.inputs]
        offsets, size = lay_out(made, capacity, _ALIGNMENT)
        block = _aligned(size)
        self.tensors: dict[str, npt.NDArray[Any]] = {}
        for spec, _ in made:
            start = offsets[spec.name]
            whole = block[start : start + capacity * sample_bytes(spec)].view(spec.dtype)
            self.tensors[spec.name] = whole.reshape(capacity, *map(int, spec.shape[1:]))
        self.small = {
            life.spec.name: np.empty((1, *map(int, life.spec.shape[1:])), np.float32)
            for life in tensors
            if life.spec.name in self.inputs and sample_bytes(life.spec) <= _SMALL
        }


def _aligned(size: int) -> npt.NDArray[np.uint8]:
    # Of zeros: samples that take another way leave what no piece has written.
    raw = np.zeros(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size]
