"""A driver that is none: CUDA's runtime as ``cuda-python`` offers it, above memory of the host; nothing waits."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from dyce_runtime.execution.contracts import DEFAULT_MAX_BATCH, PieceSpec, TargetSpec
from dyce_runtime.execution.memory import TensorLife
from dyce_targets.nvidia import cuda
from dyce_targets.nvidia.device import GpuDevice
from dyce_targets.nvidia.onnxruntime_executor import OnnxRuntimeExecutor, Provider
from tests.gpu_double import GpuDouble

SUCCESS, OUT_OF_MEMORY = 0, 2
_NAN = 0xFF
# onnxruntime's provider for CPUs, where those for GPUs would stand.
ON_HOST = Provider("CPUExecutionProvider", device="cpu", stream_option="", graph_option="")


class Driver:
    """The module, and its device of so many bytes.

    Attributes:
        held: bytes by address that were asked for and not given back.
    """

    cudaStreamNonBlocking = cudaHostAllocDefault = 0
    cudaError_t = SimpleNamespace(cudaSuccess=SUCCESS)
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3)

    def __init__(self, capacity: int = 1 << 30) -> None:
        self.capacity = capacity
        self.held: dict[int, Any] = {}
        self.streams = 0

    def __getattr__(self, name: str) -> Any:
        """A call by its name. Raises AttributeError for those that no test needs."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self, f"_{name}")

    def _cudaMalloc(self, size: int) -> tuple[int, ...]:
        if sum(map(ctypes.sizeof, self.held.values())) + size > self.capacity:
            return (OUT_OF_MEMORY, 0)
        block = (ctypes.c_uint8 * size)(*[_NAN] * size)
        self.held[ctypes.addressof(block)] = block
        return SUCCESS, ctypes.addressof(block)

    def _cudaHostAlloc(self, size: int, flags: int) -> tuple[int, ...]:
        return self._cudaMalloc(size)

    def _cudaMemcpyAsync(self, to: int, source: int, size: int, kind: int, stream: int) -> tuple[int]:
        ctypes.memmove(to, source, size)
        return (SUCCESS,)

    def _cudaFree(self, address: int) -> tuple[int]:
        del self.held[address]
        return (SUCCESS,)

    _cudaFreeHost = _cudaFree

    def _cudaStreamCreateWithFlags(self, flags: int) -> tuple[int, int]:
        self.streams += 1
        return SUCCESS, 1

    def _cudaStreamSynchronize(self, stream: int) -> tuple[int]:
        return (SUCCESS,)

    def _cudaStreamDestroy(self, stream: int) -> tuple[int]:
        self.streams -= 1
        return (SUCCESS,)

    def _cudaGetDeviceCount(self) -> tuple[int, int]:
        return SUCCESS, 1

    def _cudaGetErrorString(self, error: int) -> tuple[int, bytes]:
        return SUCCESS, b"out of memory"


@contextmanager
def installed(driver: Driver) -> Iterator[Driver]:
    """Let ours use that driver."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "_runtime", lambda: driver)
        yield driver


class ProviderDouble(GpuDouble):
    """onnxruntime's targets for GPUs with their own executor, above that driver."""

    name = "provider double"

    def open(self, pieces: Sequence[PieceSpec], tensors: Sequence[TensorLife], spec: TargetSpec) -> GpuDevice:
        executor = OnnxRuntimeExecutor(self.name, ON_HOST, pieces)
        return GpuDevice(self.name, pieces, tensors, executor, spec.max_batch or DEFAULT_MAX_BATCH)
