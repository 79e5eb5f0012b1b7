"""The device of GPU targets: static buffers and captured CUDA graphs.

For every piece and every power of two up to the largest batch there is one CUDA graph, captured when the pieces are
opened. A configuration only decides which of them are launched. A batch between two powers runs in the larger graph,
whose results for the additional samples are ignored. All hardware access is behind an
:class:`~dyce_targets.nvidia.executor.Executor`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from threading import Lock

import numpy as np
import numpy.typing as npt

from dyce_runtime.bundle.manifest import CONFIDENCE, TensorSpec
from dyce_runtime.errors import PieceError, TargetError
from dyce_runtime.execution.contracts import Array, PieceSpec, Rows
from dyce_runtime.execution.memory import TensorLife, lay_out, sample_bytes
from dyce_runtime.execution.plan import LeaveAt, Step
from dyce_runtime.execution.routing import run_step
from dyce_targets.nvidia.executor import Executor, Graph

# The alignment in bytes for vector loads of a GPU.
_ALIGNMENT = 256


class _Tensor:
    """A tensor with device memory for the largest batch.

    Attributes:
        size: bytes of one sample.
        address: address of its device memory.
    """

    def __init__(self, spec: TensorSpec, executor: Executor, most: int, address: int) -> None:
        self._shape, self._dtype = (most, *map(int, spec.shape[1:])), np.dtype(spec.dtype)
        self._executor = executor
        self._host: Array | None = None
        self.size, self.address = sample_bytes(spec), address

    @property
    def host(self) -> Array:
        """Pinned host memory (most, ...), allocated on first use."""
        if self._host is None:
            pinned = self._executor.pinned(self.size * self._shape[0])
            self._host = pinned.view(self._dtype).reshape(self._shape)
        return self._host


class GpuDevice:
    """Open pieces on one stream, with a single context: callers take turns.

    Args:
        target: name of the target, for messages.
        pieces: the pieces.
        tensors: all tensors and their lifetimes.
        executor: the access to the GPU, which the device owns and closes.
        max_rows: the largest batch.

    Attributes:
        pieces: id to piece.
        tensors: name to tensor; those that are never needed at the same time share memory.
        some: name to tensor, with memory for a part of the samples: the inputs and outputs of the cases of choices.
        graphs: (piece, number of samples, whether it uses ``some``) to graph.
        max_rows: the largest batch.
    """

    def __init__(
        self,
        target: str,
        pieces: Sequence[PieceSpec],
        tensors: Sequence[TensorLife],
        executor: Executor,
        max_rows: int,
    ) -> None:
        self.target, self.executor, self.max_rows = target, executor, max_rows
        self.pieces = {piece.id: piece for piece in pieces}
        try:
            self.tensors = self._placed(tensors)
            cases = [piece for piece in pieces if piece.for_some]
            self.some = self._placed(_lives_of(cases))
            self.graphs = {
                (piece.id, rows, some): self._capture(piece, rows, self.some if some else self.tensors)
                for piece in pieces
                for some in ((False, True) if piece.for_some else (False,))
                for rows in buckets(max_rows)
            }
            for life in tensors:
                if life.spec.lifetime in ("input", "answer"):  # allocated now, so that the first call is not slower
                    self.tensors[life.spec.name].host  # noqa: B018
        except BaseException:
            with suppress(Exception):  # the original error is the one to report
                executor.close()
            raise
        self._context = GpuContext(self)
        self._turn = Lock()
        self._closed = self._freed = False

    def context(self, rows: int) -> GpuContext:
        """Wait until no other call uses the context, and return it.

        Raises:
            PieceError: the device is closed.
            TargetError: ``rows`` is larger than the batch that the engines were built for.
        """
        if rows > self.max_rows:
            raise TargetError(
                f"{self.target}: found a batch of {rows}; the engines were built for at most {self.max_rows}",
                hint="Compile with a larger --max-batch.",
            )
        self._turn.acquire()
        if self._closed:
            self.give_back()
            raise PieceError("the device is closed")
        return self._context

    def give_back(self) -> None:
        """Release the context. After the device was closed, free it: the caller may be the last one that waited."""
        self._turn.release()
        if self._closed:
            self._free()

    def close(self) -> None:
        """Free everything, now or when the running call has ended."""
        self._closed = True
        self._free()

    def _free(self) -> None:
        if not self._turn.acquire(blocking=False):
            return
        try:
            if not self._freed:
                self._freed = True
                self.graphs.clear()  # they may hold sessions of an engine, which must be destroyed before their stream
                self.executor.close()
        finally:
            self._turn.release()

    def _placed(self, tensors: Sequence[TensorLife]) -> dict[str, _Tensor]:
        offsets, size = lay_out(tensors, self.max_rows, _ALIGNMENT)
        block = self.executor.allocate(size) if size else 0
        return {
            spec.name: _Tensor(spec, self.executor, self.max_rows, block + offsets[spec.name]) for spec, _ in tensors
        }

    def _capture(self, piece: PieceSpec, rows: int, tensors: Mapping[str, _Tensor]) -> Graph:
        addresses = {spec.name: tensors[spec.name].address for spec in (*piece.inputs, *piece.outputs)}
        return self.executor.capture(lambda: self.executor.enqueue(piece.id, rows, addresses))


def _lives_of(pieces: Sequence[PieceSpec]) -> list[TensorLife]:
    """Return the tensors of pieces with the same lifetime, so that they do not share memory."""
    specs = {spec.name: spec for piece in pieces for spec in (*piece.inputs, *piece.outputs)}
    return [TensorLife(spec, frozenset([0])) for spec in specs.values()]


class GpuParked:
    """Samples outside of the context, in device memory of their own, which is reused after the object is deleted.

    Attributes:
        rows: number of samples.
        blocks: name of each tensor to the address of its samples.
    """

    def __init__(self, rows: int, blocks: dict[str, int], free: dict[int, list[int]], sizes: Mapping[str, int]) -> None:
        self.rows, self.blocks = rows, blocks
        self._free, self._sizes = free, sizes

    def __del__(self) -> None:
        for name, address in self.blocks.items():
            self._free.setdefault(self._sizes[name], []).append(address)


class GpuContext:
    """The execution context of the call that is running; see :class:`dyce_runtime.execution.contracts`."""

    def __init__(self, device: GpuDevice) -> None:
        self._device, self._executor, self._tensors = device, device.executor, device.tensors
        self.rows = 0
        self._launched: list[str] = []
        # Unused memory for parked samples: size in bytes to addresses.
        self._free: dict[int, list[int]] = {}

    def set_input(self, name: str, array: npt.NDArray[np.float32]) -> None:
        """Copy an input to the device, through pinned memory."""
        self.rows = len(array)
        tensor = self._tensors[name]
        # An earlier upload from the same pinned memory may not have finished.
        self.wait()
        pinned = tensor.host[: len(array)]
        pinned[:] = array
        self._executor.upload(tensor.address, pinned)

    def run(self, piece: str, rows: Rows | None = None) -> None:
        """Launch a piece, asynchronously. Raises PieceError."""
        if rows is None:
            self._launch(piece, self.rows, some=False)
            return
        spec, some = self._device.pieces[piece], self._device.some
        for tensor in spec.inputs:
            self._copy(self._tensors[tensor.name], some[tensor.name], _pairs(rows, np.arange(len(rows))))
        self._launch(piece, len(rows), some=True)
        for tensor in spec.outputs:
            self._copy(some[tensor.name], self._tensors[tensor.name], _pairs(np.arange(len(rows)), rows))

    def copy(self, to: str, source: str, rows: Rows | None = None) -> None:
        """Copy within the device."""
        which = np.arange(self.rows) if rows is None else rows
        self._copy(self._tensors[source], self._tensors[to], _pairs(which, which))

    def read(self, *names: str) -> list[Array]:
        """Download tensors and wait for them. Raises PieceError."""
        found = [self._tensors[name].host[: self.rows] for name in names]
        for name, array in zip(names, found, strict=True):
            self._executor.download(array, self._tensors[name].address)
        self.wait()
        return found

    def computed_rows(self, rows: int) -> int:
        """Return the batch size of the graph that runs for ``rows`` samples."""
        return bucket(rows, self._device.max_rows)

    def run_until_exit(self, steps: Sequence[Step]) -> tuple[LeaveAt | None, npt.NDArray[np.float32]]:
        """Launch steps, waiting for the score at every exit. Raises PieceError."""
        leave, score = None, np.empty(1, np.float32)
        for step in steps:
            if not isinstance(step, LeaveAt):
                run_step(self, step)
                continue
            leave, (score,) = step, self.read(CONFIDENCE)
            if not 0 < score[0] <= step.threshold:
                break
        return leave, score

    def keep(self, order: Rows, tensors: Sequence[str]) -> None:
        """Copy samples within the device."""
        pairs = [pair for pair in _pairs(order, np.arange(len(order))) if pair[0] != pair[1]]
        for name in tensors:
            self._copy(self._tensors[name], self._tensors[name], pairs)
        self.rows = len(order)

    def gather(self, rows: Rows, tensors: Sequence[str]) -> GpuParked:
        """Copy samples to device memory of their own."""
        sizes = {name: self._tensors[name].size * len(rows) for name in tensors}
        blocks = {name: self._block(size) for name, size in sizes.items()}
        for name, address in blocks.items():
            tensor = self._tensors[name]
            for source, place, count in _pairs(rows, np.arange(len(rows))):
                self._move(tensor.address + source * tensor.size, address + place * tensor.size, count * tensor.size)
        return GpuParked(len(rows), blocks, self._free, sizes)

    def append(self, parked: GpuParked, start: int, stop: int) -> None:
        """Copy samples into the context, after those that it holds."""
        for name, address in parked.blocks.items():
            tensor = self._tensors[name]
            place, size = tensor.address + self.rows * tensor.size, (stop - start) * tensor.size
            self._move(address + start * tensor.size, place, size)
        self.rows += stop - start

    def wait(self) -> None:
        """Wait for all pieces that were launched. Raises PieceError if one failed."""
        try:
            self._executor.wait()
        except Exception as error:  # the driver's exceptions share no base class
            raise self._failed(error) from error
        self._launched.clear()

    def __enter__(self) -> GpuContext:
        return self

    def __exit__(self, *_: object) -> None:
        self.rows = 0
        self._device.give_back()

    def _launch(self, piece: str, rows: int, *, some: bool) -> None:
        self._launched.append(piece)
        graph = self._device.graphs[piece, bucket(rows, self._device.max_rows), some]
        try:
            self._executor.launch(graph)
        except Exception as error:  # the driver's exceptions share no base class
            raise self._failed(error) from error

    def _copy(self, source: _Tensor, to: _Tensor, pairs: Sequence[tuple[int, int, int]]) -> None:
        for start, place, count in pairs:
            self._move(source.address + start * source.size, to.address + place * to.size, count * source.size)

    def _move(self, source: int, to: int, size: int) -> None:
        self._executor.copy(to, source, size)

    def _block(self, size: int) -> int:
        free = self._free.get(size)
        return free.pop() if free else self._executor.allocate(size)

    def _failed(self, error: Exception) -> PieceError:
        """Return the error, naming all pieces since the last wait: a failure on the device is reported only then."""
        pieces = " or ".join(self._launched) or "of an earlier call"
        self._launched.clear()
        return PieceError(f"piece {pieces} failed in {self._device.target}: {error}")


def _pairs(sources: Rows, places: Rows) -> list[tuple[int, int, int]]:
    """Return the merged copies that move samples from ``sources`` to ``places``: (source, place, number of samples)."""
    return list(_runs(sources, places))


def _runs(sources: Rows, places: Rows) -> Iterator[tuple[int, int, int]]:
    breaks = np.flatnonzero((np.diff(sources) != 1) | (np.diff(places) != 1)) + 1
    for start, stop in zip((0, *breaks.tolist()), (*breaks.tolist(), len(sources)), strict=True):
        if stop > start:
            yield int(sources[start]), int(places[start]), stop - start


def buckets(most: int) -> list[int]:
    """Return the batch sizes for which graphs are captured: the powers of two below ``most``, and ``most``."""
    return [*(1 << k for k in range((most - 1).bit_length())), most]


def bucket(rows: int, most: int) -> int:
    """Return the smallest of the :func:`buckets` that is not below ``rows``."""
    return min(1 << (rows - 1).bit_length(), most)
