"""CUDA through ``cuda-python``: memory, streams and graphs.

Written against cuda-python 13; run on an H100, below onnxruntime's provider for CUDA; TensorRT's above doubles alone.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from dyce_runtime.errors import TargetError

_DRIVER = "libcuda.so.1"


def driver_missing() -> str | None:
    """None if NVIDIA's driver is installed, otherwise that it is not. Neither CUDA nor a GPU is asked for anything."""
    try:
        _driver()
    except OSError:
        return f"there is no driver for an NVIDIA GPU here ({_DRIVER})"
    return None


@cache
def _driver() -> ctypes.CDLL:
    """Kept once it is found: to look for it again costs more than the call of CUDA that asks. Raises OSError."""
    return ctypes.CDLL(_DRIVER)


def missing() -> str | None:
    """None if there is a GPU to run on, otherwise why not."""
    try:
        count = _call("cudaGetDeviceCount")
    except ModuleNotFoundError:
        return "cuda-python is not installed; pip install cuda-python"
    except (Exception, SystemExit) as error:  # ours, or cuda-python's own if there is no library of CUDA
        return f"no GPU can be used: {error}; is its driver installed, and new enough?"
    return None if count else "there is no NVIDIA GPU in this machine"


def compute_capability() -> str:
    """That of the GPU in this machine, such as ``sm86``. Raises TargetError."""
    attribute = _runtime().cudaDeviceAttr
    major = _call("cudaDeviceGetAttribute", attribute.cudaDevAttrComputeCapabilityMajor, 0)
    minor = _call("cudaDeviceGetAttribute", attribute.cudaDevAttrComputeCapabilityMinor, 0)
    return f"sm{major}{minor}"


class CudaStream:
    """Memory and one stream of a GPU, as :class:`dyce_targets.nvidia.executor.Executor` describes them.

    Attributes:
        stream: its handle.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self.stream = _call("cudaStreamCreateWithFlags", _runtime().cudaStreamNonBlocking)
        self._device: list[int] = []
        self._host: list[int] = []

    def allocate(self, size: int) -> int:
        """Raises TargetError if the device is out of memory."""
        try:
            address = int(_call("cudaMalloc", max(size, 1)))
        except TargetError as error:
            raise TargetError(
                f"{self._target}: {size / 1e6:.0f} MB of device memory cannot be had: {error.message}",
                hint="Close other programs, compile with a smaller --max-batch, or export with fewer exits.",
            ) from error
        self._device.append(address)
        return address

    def pinned(self, size: int) -> npt.NDArray[np.uint8]:
        """Page-locked memory, freed by :meth:`close`."""
        address = int(_call("cudaHostAlloc", max(size, 1), _runtime().cudaHostAllocDefault))
        self._host.append(address)
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def upload(self, address: int, array: npt.NDArray[Any]) -> None:
        """Asynchronous."""
        self._copy(address, array.ctypes.data, array.nbytes, "cudaMemcpyHostToDevice")

    def download(self, array: npt.NDArray[Any], address: int) -> None:
        """Asynchronous."""
        self._copy(array.ctypes.data, address, array.nbytes, "cudaMemcpyDeviceToHost")

    def copy(self, destination: int, source: int, size: int) -> None:
        """Asynchronous."""
        self._copy(destination, source, size, "cudaMemcpyDeviceToDevice")

    def wait(self) -> None:
        """Raises TargetError with what went wrong since the last wait."""
        _call("cudaStreamSynchronize", self.stream)

    def close(self) -> None:
        """Free memory and the stream, once what was asked for is done."""
        self.wait()
        for address in self._device:
            _call("cudaFree", address)
        for address in self._host:
            _call("cudaFreeHost", address)
        _call("cudaStreamDestroy", self.stream)

    def _copy(self, destination: int, source: int, size: int, kind: str) -> None:
        kinds = _runtime().cudaMemcpyKind
        _call("cudaMemcpyAsync", destination, source, size, getattr(kinds, kind), self.stream)


def capture(stream: CudaStream, work: Callable[[], None]) -> Any:
    """What ``work`` enqueues, as an executable graph. Raises TargetError."""
    _call("cudaStreamBeginCapture", stream.stream, _runtime().cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
    try:
        work()
    finally:
        graph = _call("cudaStreamEndCapture", stream.stream)
    executable = _call("cudaGraphInstantiate", graph, 0)
    _call("cudaGraphDestroy", graph)
    return executable


def launch(stream: CudaStream, graph: Any) -> None:
    """Run a captured graph; returns before it has ended."""
    _call("cudaGraphLaunch", graph, stream.stream)


def destroy(graph: Any) -> None:
    """Free a captured graph."""
    _call("cudaGraphExecDestroy", graph)


def _runtime() -> Any:
    if reason := driver_missing():
        raise TargetError(reason)
    from cuda.bindings import runtime

    return runtime


def _call(name: str, *arguments: Any) -> Any:
    """A call of CUDA's runtime; its result, if it has one. Raises TargetError if it fails."""
    runtime = _runtime()
    error, *results = getattr(runtime, name)(*arguments)
    if error != runtime.cudaError_t.cudaSuccess:
        said = runtime.cudaGetErrorString(error)[1]
        raise TargetError(f"{name}: {said.decode() if isinstance(said, bytes) else said}")
    return results[0] if results else None
