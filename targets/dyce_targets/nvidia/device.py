"""A device of static buffers and captured graphs: which ones a call launches, and in which order.

For every piece and every power of two up to the largest batch there is one CUDA graph, captured when the pieces are
opened. A configuration decides which of them are launched and nothing else. A batch between two powers runs
in the larger graph; what that computes for the rest is never looked at. All of this is plain logic above an
:class:`~dyce_targets.nvidia.executor.Executor`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from math import prod
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dyce_runtime.bundle.manifest import CONFIDENCE, LABEL, LOGITS, TensorSpec
from dyce_runtime.errors import PieceError, TargetError
from dyce_runtime.execution.contracts import PieceSpec, carried
from dyce_runtime.execution.plan import Step
from dyce_targets.nvidia.executor import Executor, Graph


class _Tensor:
    """A tensor of the pieces, with device memory for the largest batch.

    Attributes:
        size: bytes of one sample.
        address: of that memory.
    """

    def __init__(self, spec: TensorSpec, executor: Executor, most: int) -> None:
        self._shape, self._dtype = (most, *map(int, spec.shape[1:])), np.dtype(spec.dtype)
        self._executor = executor
        self.size = prod(self._shape[1:]) * self._dtype.itemsize
        self.address = executor.allocate(self.size * most)

    @cached_property
    def host(self) -> npt.NDArray[Any]:
        """(most, ...) pinned memory; seams have none before a stream moves samples."""
        pinned = self._executor.pinned(self.size * self._shape[0])
        return pinned.view(self._dtype).reshape(self._shape)


class GpuDevice:
    """Open pieces on one stream, with one lane: callers take turns.

    Attributes:
        pieces: by id.
        inputs: what pieces read, by name.
        tensors: by name; a seam has the same memory for the piece that writes it and for those that read it.
        graphs: by piece and number of samples.
        most: the largest batch.
    """

    def __init__(self, target: str, pieces: Sequence[PieceSpec], executor: Executor, most: int) -> None:
        self.target, self.executor, self.most = target, executor, most
        self.pieces = {piece.id: piece for piece in pieces}
        specs = {spec.name: spec for piece in pieces for spec in (*piece.inputs, *piece.outputs)}
        try:
            self.tensors = {name: _Tensor(spec, executor, most) for name, spec in specs.items()}
            self.graphs = {(piece.id, rows): self._capture(piece, rows) for piece in pieces for rows in buckets(most)}
        except BaseException:
            with suppress(Exception):  # the first error says what is wrong
                executor.close()
            raise
        self.inputs = {spec.name: spec for piece in pieces for spec in piece.inputs}
        self._lane = GpuLane(self)
        self._turn = Lock()
        self._closed = self._freed = False

    def lane(self, rows: int) -> GpuLane:
        """The lane, when its turn has come.

        Raises:
            PieceError: the device is closed.
            TargetError: more samples than the engines were built for.
        """
        if rows > self.most:
            raise TargetError(
                f"{self.target}: found a batch of {rows}; the engines were built for at most {self.most}",
                hint="Compile with a larger --max-batch.",
            )
        self._turn.acquire()
        if self._closed:
            self.give_back()
            raise PieceError("the device is closed")
        return self._lane

    def give_back(self) -> None:
        """The turn is over. Whoever ends one after the device was closed frees it: a waiter may be the last."""
        self._turn.release()
        if self._closed:
            self._free()

    def close(self) -> None:
        """Free everything, now or when the call that runs has ended."""
        self._closed = True
        self._free()

    def _free(self) -> None:
        if not self._turn.acquire(blocking=False):
            return
        try:
            if not self._freed:
                self._freed = True
                self.graphs.clear()  # they may hold sessions of an engine, which have to go before their stream
                self.executor.close()
        finally:
            self._turn.release()

    def _capture(self, piece: PieceSpec, rows: int) -> Graph:
        addresses = {spec.name: self.tensors[spec.name].address for spec in (*piece.inputs, *piece.outputs)}
        return self.executor.capture(lambda: self.executor.enqueue(piece.id, rows, addresses))


class Taken(NamedTuple):
    """Samples outside of the lane: (samples, ...) of what is live, then of what is left for later."""

    rows: int
    specs: tuple[TensorSpec, ...]
    left: tuple[TensorSpec, ...]
    arrays: list[npt.NDArray[Any]]


class GpuLane:
    """The one call that runs."""

    def __init__(self, device: GpuDevice) -> None:
        self._device, self._executor, self._tensors = device, device.executor, device.tensors
        self.rows = 0
        self._specs: tuple[TensorSpec, ...] = ()
        self._before: tuple[TensorSpec, ...] = ()
        self._left: tuple[TensorSpec, ...] = ()
        self._launched: list[str] = []

    def put(self, images: npt.NDArray[np.float32], name: str) -> None:
        """Copy images to the device, by way of pinned memory."""
        self.rows = len(images)
        self._specs = (self._device.inputs[name],)
        self._upload(self._specs[0], 0, images)

    def run(self, piece: str) -> None:
        """Launch a segment. Raises PieceError."""
        self._launch(piece)
        outputs = self._device.pieces[piece].outputs
        self._before, self._specs = self._specs, () if outputs[0].name == LOGITS else outputs

    def rewind(self) -> None:
        """Undo the last run: its inputs are still there."""
        self._specs = self._before

    def decide(self, head: str | None = None) -> npt.NDArray[np.float32]:
        """Launch a head, and wait for its confidences alone. Raises PieceError."""
        if head is not None:
            self._launch(head)
        (confidence,) = self._download(CONFIDENCE)
        return confidence

    def until_confident(self, steps: Sequence[Step]) -> tuple[Step, npt.NDArray[np.float32]]:
        """Launch steps; the next one only when the decision is known. Raises PieceError."""
        for step in steps:
            for piece in step.body:
                self.run(piece)
            confidence = self.decide(step.head)
            if not 0 < confidence[0] <= step.threshold:
                break
        return step, confidence

    def answers(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Logits and labels of the last decision: fetched only for samples that leave."""
        logits, label = self._download(LOGITS, LABEL)
        return logits, label

    def compact(self, sources: npt.NDArray[np.intp], places: npt.NDArray[np.intp], rows: int) -> None:
        """Copy samples within the device, in this order: a source may be a place of an earlier one."""
        for spec in (*self._specs, *self._left):
            tensor = self._tensors[spec.name]
            for source, place in zip(sources.tolist(), places.tolist(), strict=True):
                if source != place:
                    self._executor.copy(
                        tensor.address + place * tensor.size, tensor.address + source * tensor.size, tensor.size
                    )
        self.rows = rows

    def take(self, rows: npt.NDArray[np.intp]) -> Taken:
        """Copies on the host."""
        arrays = self._download(*(spec.name for spec in (*self._specs, *self._left)))
        return Taken(len(rows), self._specs, self._left, [array[rows] for array in arrays])

    def add(self, handle: Taken) -> None:
        """Copy samples behind those that are there."""
        self._specs, self._left = handle.specs, handle.left
        for spec, array in zip((*handle.specs, *handle.left), handle.arrays, strict=True):
            self._upload(spec, self.rows, array)
        self.rows += handle.rows

    def live(self) -> list[npt.NDArray[Any]]:
        """What the last run wrote, on the host."""
        return self._download(*(spec.name for spec in self._specs))

    def left(self) -> dict[str, npt.NDArray[Any]]:
        """What was left for later, on the host."""
        names = [spec.name for spec in self._left]
        return dict(zip(names, self._download(*names), strict=True))

    def __enter__(self) -> GpuLane:
        return self

    def __exit__(self, *_: object) -> None:
        self.rows, self._left = 0, ()
        self._device.give_back()

    def _launch(self, piece: str) -> None:
        self._launched.append(piece)
        graph = self._device.graphs[piece, bucket(self.rows, self._device.most)]
        try:
            self._executor.launch(graph)
        except Exception as error:  # the driver's exceptions share no base class
            raise self._failed(error) from error
        left = carried(self._device.pieces[piece].outputs)
        self._left = (*self._left, *(spec for spec in left if spec not in self._left))

    def _upload(self, spec: TensorSpec, start: int, array: npt.NDArray[Any]) -> None:
        tensor = self._tensors[spec.name]
        # What was uploaded before may still be on its way from the same pinned memory.
        self._wait()
        pinned = tensor.host[start : start + len(array)]
        pinned[:] = array
        self._executor.upload(tensor.address + start * tensor.size, pinned)

    def _download(self, *names: str) -> list[npt.NDArray[Any]]:
        found = [self._tensors[name].host[: self.rows] for name in names]
        for name, array in zip(names, found, strict=True):
            self._executor.download(array, self._tensors[name].address)
        self._wait()
        return found

    def _wait(self) -> None:
        try:
            self._executor.wait()
        except Exception as error:  # as above
            raise self._failed(error) from error
        self._launched.clear()

    def _failed(self, error: Exception) -> PieceError:
        """What fails on the device is known at the next wait: it may be any that was launched since the last one."""
        pieces = " or ".join(self._launched)
        self._launched.clear()
        return PieceError(f"piece {pieces} failed in {self._device.target}: {error}")


def buckets(most: int) -> list[int]:
    """The numbers of samples that graphs are captured for: powers of two below ``most``, and that."""
    return [*(1 << k for k in range((most - 1).bit_length())), most]


def bucket(rows: int, most: int) -> int:
    """The smallest of them that holds so many samples."""
    return min(1 << (rows - 1).bit_length(), most)
