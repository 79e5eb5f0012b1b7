"""The executor on a GPU: CUDA through ``cuda-python``, engines through either product.

Written against the types of TensorRT 10.13 and cuda-python 13. There is no GPU where it was developed: never run.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dyce_runtime.contracts import PieceSpec
from dyce_runtime.errors import BundleError, TargetError
from dyce_targets.nvidia.builder import last_error, logger
from dyce_targets.nvidia.products import Product

if TYPE_CHECKING:
    import tensorrt


def missing() -> str | None:
    """None if there is a GPU to run on, otherwise why not."""
    try:
        count = _call("cudaGetDeviceCount")
    except ImportError:
        return "cuda-python is not installed; pip install cuda-python"
    except Exception as error:  # ours, or cuda-python's own if there is no library of CUDA
        return f"no GPU can be used: {error}; is its driver installed?"
    return None if count else "there is no NVIDIA GPU in this machine"


def compute_capability() -> str:
    """That of the GPU in this machine, such as ``sm86``. Raises TargetError."""
    attribute = _runtime().cudaDeviceAttr
    major = _call("cudaDeviceGetAttribute", attribute.cudaDevAttrComputeCapabilityMajor, 0)
    minor = _call("cudaDeviceGetAttribute", attribute.cudaDevAttrComputeCapabilityMinor, 0)
    return f"sm{major}{minor}"


class CudaExecutor:
    """See :class:`dyce_targets.nvidia.executor.Executor`.

    Engines run one after another, so all share one scratch buffer. Every piece has an execution context of its own for
    each number of samples: a graph holds on to the state of the context that it was captured from.
    """

    def __init__(self, product: Product, pieces: Sequence[PieceSpec], engines: Mapping[str, Path]) -> None:
        self._product, self._trt = product, product.load()
        self._pieces = {piece.id: piece for piece in pieces}
        self._stream = _call("cudaStreamCreateWithFlags", _runtime().cudaStreamNonBlocking)
        self._device: list[int] = []
        self._host: list[int] = []
        self._graphs: list[Any] = []
        self._deserializer: tensorrt.Runtime = self._trt.Runtime(logger(self._trt))
        self._engines = {piece.id: self._open(engines[piece.id]) for piece in pieces}
        self._scratch_size = max(engine.device_memory_size_v2 for engine in self._engines.values())
        self._scratch = self.allocate(self._scratch_size)
        self._contexts: dict[tuple[str, int], tensorrt.IExecutionContext] = {}

    def allocate(self, size: int) -> int:
        """Raises TargetError if the device is out of memory."""
        try:
            address = int(_call("cudaMalloc", max(size, 1)))
        except TargetError as error:
            raise TargetError(
                f"{self._product.name}: {size / 1e6:.0f} MB of device memory cannot be had: {error.message}",
                hint="Close other programs, compile with a smaller --max-batch, or export with fewer exits.",
            ) from error
        self._device.append(address)
        return address

    def pinned(self, size: int) -> npt.NDArray[np.uint8]:
        """Page-locked memory, freed by :meth:`close`."""
        address = int(_call("cudaHostAlloc", max(size, 1), _runtime().cudaHostAllocDefault))
        self._host.append(address)
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def capture(self, work: Callable[[], None]) -> Any:
        """Runs ``work`` once before: the first run of a context compiles and allocates, which cannot be captured."""
        work()
        self.wait()
        _call("cudaStreamBeginCapture", self._stream, _runtime().cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        try:
            work()
        finally:
            graph = _call("cudaStreamEndCapture", self._stream)
        executable = _call("cudaGraphInstantiate", graph, 0)
        _call("cudaGraphDestroy", graph)
        self._graphs.append(executable)
        return executable

    def launch(self, graph: Any) -> None:
        """Asynchronous."""
        _call("cudaGraphLaunch", graph, self._stream)

    def enqueue(self, piece: str, rows: int, addresses: Mapping[str, int]) -> None:
        """Into the graph that is being captured."""
        context = self._contexts.get((piece, rows))
        if context is None:
            context = self._contexts[piece, rows] = self._context(piece, rows, addresses)
        if not context.execute_async_v3(int(self._stream)):
            raise TargetError(f"{self._product.name}: piece {piece} does not run: {last_error(self._trt)}")

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
        _call("cudaStreamSynchronize", self._stream)

    def close(self) -> None:
        """Free graphs, contexts, engines, memory and the stream, in this order."""
        self.wait()
        for graph in self._graphs:
            _call("cudaGraphExecDestroy", graph)
        self._contexts.clear()
        self._engines.clear()
        for address in self._device:
            _call("cudaFree", address)
        for address in self._host:
            _call("cudaFreeHost", address)
        _call("cudaStreamDestroy", self._stream)

    def _open(self, path: Path) -> tensorrt.ICudaEngine:
        engine = self._deserializer.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise BundleError(
                f"{path} does not load in {self._product.title} {self._trt.__version__}: {last_error(self._trt)}",
                hint="Delete it and load again: it is built again from the bundle.",
            )
        return engine

    def _context(self, piece: str, rows: int, addresses: Mapping[str, int]) -> tensorrt.IExecutionContext:
        """For so many samples, bound to the buffers."""
        engine, spec = self._engines[piece], self._pieces[piece]
        context = engine.create_execution_context(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        # The first profile is for one sample, the last for any number.
        profile = 0 if rows == 1 else engine.num_optimization_profiles - 1
        done = [context.set_optimization_profile_async(profile, int(self._stream))]
        for tensor in spec.inputs:
            done.append(context.set_input_shape(tensor.name, (rows, *map(int, tensor.shape[1:]))))
        done += [context.set_tensor_address(name, address) for name, address in addresses.items()]
        if not all(done):
            raise TargetError(
                f"{self._product.name}: piece {piece} cannot be bound for {rows} samples: {last_error(self._trt)}"
            )
        context.set_device_memory(self._scratch, self._scratch_size)
        return context

    def _copy(self, destination: int, source: int, size: int, kind: str) -> None:
        kinds = _runtime().cudaMemcpyKind
        _call("cudaMemcpyAsync", destination, source, size, getattr(kinds, kind), self._stream)


def _runtime() -> Any:
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
