"""A GPU that is none: memory, a stream and graphs on the host, where onnxruntime computes what engines would.

It keeps what a real one keeps to: nothing happens before ``wait``, memory that was never written holds NaN, and pinned
memory is read when a copy is done, not when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from dyce_runtime.errors import BundleError
from dyce_runtime.execution.contracts import DEFAULT_MAX_BATCH, Artefact, PieceSpec, TargetSpec
from dyce_runtime.execution.memory import TensorLife
from dyce_targets.nvidia.device import GpuDevice

_ALIGNMENT = 256
Work = Callable[[], None]


class HostExecutor:
    """The double.

    Attributes:
        ran: (piece, samples) in the order in which the stream ran them.
        captured: how many graphs there are.
        memory: bytes that were allocated.
        fetched: bytes that came back to the host.
        before: called with the id of a piece that is about to run.
        closed: how often it was.
    """

    def __init__(self, pieces: Sequence[PieceSpec]) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._pieces = {piece.id: piece for piece in pieces}
        self._engines = {piece.id: _open(piece, options) for piece in pieces}
        self._blocks: dict[int, NDArray[np.uint8]] = {}
        self._next = _ALIGNMENT
        self._queue: list[Work] = []
        self._recording: list[Work] | None = None
        self.ran: list[tuple[str, int]] = []
        self.captured = self.memory = self.fetched = self.closed = 0
        self.before: Callable[[str], object] = lambda piece: None

    def allocate(self, size: int) -> int:
        address = self._next
        self._blocks[address] = np.full(size, 0xFF, np.uint8)
        self._next += -(-size // _ALIGNMENT) * _ALIGNMENT
        self.memory += size
        return address

    def pinned(self, size: int) -> NDArray[np.uint8]:
        return np.full(size, 0xFF, np.uint8)

    def capture(self, work: Work) -> list[Work]:
        self._recording = []
        work()
        graph, self._recording = self._recording, None
        self.captured += 1
        return graph

    def launch(self, graph: list[Work]) -> None:
        self._queue += graph

    def enqueue(self, piece: str, rows: int, addresses: Mapping[str, int]) -> None:
        assert self._recording is not None, "an engine runs in a graph only"
        self._recording.append(lambda: self._run(piece, rows, addresses))

    def upload(self, address: int, array: NDArray[Any]) -> None:
        def work() -> None:
            self._bytes(address, array.nbytes)[:] = array.reshape(-1).view(np.uint8)

        self._queue.append(work)

    def download(self, array: NDArray[Any], address: int) -> None:
        def work() -> None:
            array.reshape(-1).view(np.uint8)[:] = self._bytes(address, array.nbytes)
            self.fetched += array.nbytes

        self._queue.append(work)

    def copy(self, destination: int, source: int, size: int) -> None:
        assert abs(destination - source) >= size, "what overlaps cannot be copied"

        def work() -> None:
            self._bytes(destination, size)[:] = self._bytes(source, size)

        self._queue.append(work)

    def wait(self) -> None:
        queue, self._queue = self._queue, []
        for work in queue:
            work()

    def close(self) -> None:
        self.closed += 1

    def _bytes(self, address: int, size: int) -> NDArray[np.uint8]:
        start = max(block for block in self._blocks if block <= address)
        found = self._blocks[start][address - start : address - start + size]
        assert len(found) == size, "beyond what was allocated"
        return found

    def _run(self, piece: str, rows: int, addresses: Mapping[str, int]) -> None:
        self.before(piece)
        self.ran.append((piece, rows))
        spec = self._pieces[piece]

        def array(tensor: Any) -> NDArray[Any]:
            shape = (rows, *map(int, tensor.shape[1:]))
            size = prod(shape) * np.dtype(tensor.dtype).itemsize
            return self._bytes(addresses[tensor.name], size).view(tensor.dtype).reshape(shape)

        outputs = self._engines[piece].run(
            [tensor.name for tensor in spec.outputs], {tensor.name: array(tensor) for tensor in spec.inputs}
        )
        for tensor, found in zip(spec.outputs, outputs, strict=True):
            array(tensor)[:] = found


def _open(piece: PieceSpec, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    try:
        session = onnxruntime.InferenceSession(piece.path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise BundleError(f"{piece.path} does not load in the double: {error}") from error
    if [spec.name for spec in piece.outputs] != [own.name for own in session.get_outputs()]:
        raise BundleError(f"{piece.path} has no such tensors: an address of one cannot be set")
    return session


class GpuDouble:
    """A target whose device is the real one above the double.

    Attributes:
        executor: of the device that was opened last.
    """

    name = "gpu double"
    spans = False
    engines = False
    executor: HostExecutor

    def available(self) -> str | None:
        return None

    def version(self) -> str:
        return "1"

    def compiles(self) -> str | None:
        return None

    def best_batch(self, spec: TargetSpec, macs: int) -> int:
        return spec.max_batch or DEFAULT_MAX_BATCH

    def compile(self, piece: PieceSpec, spec: TargetSpec, folder: Path) -> Artefact:
        return Artefact(piece.path, built=False)

    def open(self, pieces: Sequence[PieceSpec], tensors: Sequence[TensorLife], spec: TargetSpec) -> GpuDevice:
        self.executor = HostExecutor(pieces)
        return GpuDevice(self.name, pieces, tensors, self.executor, spec.max_batch or DEFAULT_MAX_BATCH)
