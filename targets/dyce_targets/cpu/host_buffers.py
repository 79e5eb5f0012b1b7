"""Memory for the tensors of a call on a CPU, allocated once and reused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dyce_runtime.errors import TargetError
from dyce_runtime.execution.memory import TensorLife, lay_out, sample_bytes

# The most bytes of an input for which copying is faster than binding its address.
_SMALL = 1 << 16
# The size of a cache line, which suits vector instructions.
_ALIGNMENT = 64


class HostBuffers:
    """One block of memory with room for every tensor except the inputs, which are read from the caller's memory.

    Attributes:
        capacity: number of samples that it has room for.
        tensors: name to array (capacity, ...), for all tensors except inputs.
        inputs: names of the input tensors.
        small: name to array (1, ...) float32, into which an input of one sample is copied; for small inputs only.
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
    # Zeros, since samples that take another branch leave parts of a tensor unwritten.
    try:
        raw = np.zeros(size + _ALIGNMENT, np.uint8)
    except MemoryError as error:
        raise TargetError(
            f"{size >> 20} MiB for the tensors of the samples cannot be allocated",
            hint="Open the bundle with a smaller max_batch, or run fewer samples at once.",
        ) from error
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size]
