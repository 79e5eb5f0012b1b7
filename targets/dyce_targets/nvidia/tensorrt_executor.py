"""The executor that runs engines of TensorRT and TensorRT-RTX.

Written with the type stubs of TensorRT 10.13. It has never run on a GPU, as none was available for its development.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dyce_runtime.errors import BundleError, TargetError
from dyce_runtime.execution.contracts import PieceSpec
from dyce_targets.nvidia import cuda
from dyce_targets.nvidia.builder import last_error, logger
from dyce_targets.nvidia.products import Product

if TYPE_CHECKING:
    import tensorrt


class TensorRtExecutor(cuda.CudaStream):
    """See :class:`dyce_targets.nvidia.executor.Executor`.

    Engines run one after another, so all of them share one scratch buffer. Every piece has an execution context of its
    own for each number of samples, since a graph depends on the state of the context from which it was captured.

    Args:
        product: the product.
        pieces: the pieces.
        engines: id of each piece to its engine file.
    """

    def __init__(self, product: Product, pieces: Sequence[PieceSpec], engines: Mapping[str, Path]) -> None:
        super().__init__(product.name)
        self._product, self._trt = product, product.load()
        self._pieces = {piece.id: piece for piece in pieces}
        self._graphs: list[Any] = []
        self._deserializer: tensorrt.Runtime = self._trt.Runtime(logger(self._trt))
        self._engines = {piece.id: self._open(engines[piece.id]) for piece in pieces}
        self._scratch_size = max(engine.device_memory_size_v2 for engine in self._engines.values())
        self._scratch = self.allocate(self._scratch_size)
        self._contexts: dict[tuple[str, int], tensorrt.IExecutionContext] = {}

    def capture(self, work: Callable[[], None]) -> Any:
        """Run ``work`` once, then capture it: the first run of a context compiles and allocates, which no graph can."""
        work()
        self.wait()
        self._graphs.append(cuda.capture(self, work))
        return self._graphs[-1]

    def launch(self, graph: Any) -> None:
        """Launch a captured graph, asynchronously."""
        cuda.launch(self, graph)

    def enqueue(self, piece: str, rows: int, addresses: Mapping[str, int]) -> None:
        """Enqueue the engine of a piece on the stream, on which a graph may be being captured. Raises TargetError."""
        context = self._contexts.get((piece, rows))
        if context is None:
            context = self._contexts[piece, rows] = self._context(piece, rows, addresses)
        if not context.execute_async_v3(int(self.stream)):
            raise TargetError(f"{self._product.name}: piece {piece} does not run: {last_error(self._trt)}")

    def close(self) -> None:
        """Free graphs, contexts and engines, then memory and the stream."""
        self.wait()
        for graph in self._graphs:
            cuda.destroy(graph)
        self._contexts.clear()
        self._engines.clear()
        super().close()

    def _open(self, path: Path) -> tensorrt.ICudaEngine:
        engine = self._deserializer.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise BundleError(
                f"{path} does not load in {self._product.title} {self._trt.__version__}: {last_error(self._trt)}",
                hint="Delete it and load again: it is built again from the bundle.",
            )
        return engine

    def _context(self, piece: str, rows: int, addresses: Mapping[str, int]) -> tensorrt.IExecutionContext:
        """Make an execution context of a piece for ``rows`` samples, bound to device memory. Raises TargetError."""
        engine, spec = self._engines[piece], self._pieces[piece]
        context = engine.create_execution_context(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None:
            raise TargetError(
                f"{self._product.name}: piece {piece} cannot be opened for {rows} samples: {last_error(self._trt)}",
                hint="If device memory ran out: close other programs, or compile with a smaller --max-batch.",
            )
        # The first profile is for one sample, the last for any number of samples.
        profile = 0 if rows == 1 else engine.num_optimization_profiles - 1
        done = [context.set_optimization_profile_async(profile, int(self.stream))]
        for tensor in spec.inputs:
            done.append(context.set_input_shape(tensor.name, (rows, *map(int, tensor.shape[1:]))))
        done += [context.set_tensor_address(name, address) for name, address in addresses.items()]
        if not all(done):
            raise TargetError(
                f"{self._product.name}: piece {piece} cannot be bound for {rows} samples: {last_error(self._trt)}"
            )
        context.set_device_memory(self._scratch, self._scratch_size)
        return context
