"""CUDA through ``cuda-python``: memory, streams and graphs.

Written for cuda-python 13. Tested on an H100 with onnxruntime's provider for CUDA; with TensorRT, only against test
doubles.
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
    """Return None if NVIDIA's driver is installed, otherwise a message that it is not. Does not initialise CUDA."""
    try:
        _driver()
    except OSError:
        return f"there is no driver for an NVIDIA GPU here ({_DRIVER})"
    return None


@cache
def _driver() -> ctypes.CDLL:
    """Load the driver, once: looking it up again would take longer than a call of CUDA. Raises OSError."""
    return ctypes.CDLL(_DRIVER)


def missing() -> str | None:
    """Return None if there is a usable GPU, otherwise the reason why not."""
    try:
        count = _call("cudaGetDeviceCount")
    except ModuleNotFoundError:
        return "cuda-python is not installed; pip install cuda-python"
    except (Exception, SystemExit) as error:  # TargetError, or an error of cuda-python if CUDA's library is missing
        return f"no GPU can be used: {error}; is its driver installed, and new enough?"
    return None if count else "there is no NVIDIA GPU in this machine"


def compute_capability() -> str:
    """Return the compute capability of this machine's first GPU, such as ``sm86``. Raises TargetError."""
    attribute = _runtime().cudaDeviceAttr
    major = _call("cudaDeviceGetAttribute", attribute.cudaDevAttrComputeCapabilityMajor, 0)
    minor = _call("cudaDeviceGetAttribute", attribute.cudaDevAttrComputeCapabilityMinor, 0)
    return f"sm{major}{minor}"


class CudaStream:
    """Memory and one stream of a GPU: the part of :class:`dyce_targets.nvidia.executor.Executor` that uses CUDA only.

    Attributes:
        stream: handle of the stream.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self.stream = _call("cudaStreamCreateWithFlags", _runtime().cudaStreamNonBlocking)
        self._device: list[int] = []
        self._host: list[int] = []

    def allocate(self, size: int) -> int:
        """Allocate ``size`` bytes of device memory, freed by :meth:`close`; return their address.

        Raises:
            TargetError: the device is out of memory.
        """
        try:
            address = int(_call("cudaMalloc", max(size, 1)))
        except TargetError as error:
            raise TargetError(
                f"{self._target}: {size / 1e6:.0f} MB of device memory cannot be allocated: {error.message}",
                hint="Close other programs, compile with a smaller --max-batch, or export with fewer exits.",
            ) from error
        self._device.append(address)
        return address

    def pinned(self, size: int) -> npt.NDArray[np.uint8]:
        """Allocate page-locked host memory (size,) uint8, freed by :meth:`close`."""
        address = int(_call("cudaHostAlloc", max(size, 1), _runtime().cudaHostAllocDefault))
        self._host.append(address)
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def upload(self, address: int, array: npt.NDArray[Any]) -> None:
        """Copy an array to the device, asynchronously."""
        self._copy(address, array.ctypes.data, array.nbytes, "cudaMemcpyHostToDevice")

    def download(self, array: npt.NDArray[Any], address: int) -> None:
        """Copy from the device to an array, asynchronously."""
        self._copy(array.ctypes.data, address, array.nbytes, "cudaMemcpyDeviceToHost")

    def copy(self, destination: int, source: int, size: int) -> None:
        """Copy bytes within the device, asynchronously."""
        self._copy(destination, source, size, "cudaMemcpyDeviceToDevice")

    def wait(self) -> None:
        """Wait for the stream. Raises TargetError if an operation since the last wait failed."""
        _call("cudaStreamSynchronize", self.stream)

    def close(self) -> None:
        """Free memory and the stream, after all operations have finished."""
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
    """Capture what ``work`` enqueues as an executable graph, which the caller has to destroy. Raises TargetError."""
    _call("cudaStreamBeginCapture", stream.stream, _runtime().cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
    try:
        work()
    finally:
        graph = _call("cudaStreamEndCapture", stream.stream)
    executable = _call("cudaGraphInstantiate", graph, 0)
    _call("cudaGraphDestroy", graph)
    return executable


def launch(stream: CudaStream, graph: Any) -> None:
    """Launch a captured graph, asynchronously."""
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
    """Call a function of CUDA's runtime; return its first result, or None. Raises TargetError if it fails."""
    runtime = _runtime()
    error, *results = getattr(runtime, name)(*arguments)
    if error != runtime.cudaError_t.cudaSuccess:
        said = runtime.cudaGetErrorString(error)[1]
        raise TargetError(f"{name}: {said.decode() if isinstance(said, bytes) else said}")
    return results[0] if results else None
