"""The device and the execution context of engines that compute in host memory: pieces bound to permanent buffers.

An engine only adds how it binds an array to an input or an output (:class:`HostBinding`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias
from weakref import ref

import numpy as np
import numpy.typing as npt

from dyce_runtime.bundle.manifest import CONFIDENCE
from dyce_runtime.errors import PieceError
from dyce_runtime.execution.contracts import Array, PieceSpec, Rows
from dyce_runtime.execution.memory import TensorLife
from dyce_runtime.execution.plan import LeaveAt, Step
from dyce_runtime.execution.routing import cases_of
from dyce_runtime.program.liveness import Choosing, Copy
from dyce_runtime.program.operations import Run
from dyce_targets.cpu.host_buffers import HostBuffers

# The most stages that a context keeps recorded. Applications switch between a few configurations.
_MOST_RECORDED = 64
# The most samples in one context: more would take memory without being faster.
_MOST_ROWS = 1 << 16


class HostBinding(ABC):
    """A piece bound to arrays, for a number of samples.

    Engines keep the address of an array, not a reference to it: the context keeps every array alive while it is bound.

    Attributes:
        spec: the piece.
        call: runs the piece in the engine; may raise any exception.
        rows: the number of samples; 0 before :meth:`bind`.
        brought: index and name of the inputs in the caller's memory, which are bound again for every call.
    """

    def __init__(self, spec: PieceSpec, call: Callable[[], object]) -> None:
        self.spec, self.call, self.rows = spec, call, 0
        self.brought: tuple[tuple[int, str], ...] = ()

    @abstractmethod
    def read(self, index: int, array: Array) -> None:
        """Bind input ``index`` to an array, for this call and all further ones."""

    @abstractmethod
    def write(self, index: int, array: Array) -> None:
        """Bind output ``index`` to an array."""

    @abstractmethod
    def read_brought(self, index: int, array: Array) -> None:
        """Bind input ``index`` to an array of the current call, which is C-contiguous, aligned and writeable."""

    def bind(self, tensors: Mapping[str, Array], rows: int) -> None:
        """Bind the piece to the first ``rows`` samples of these tensors. Missing inputs are bound for each call."""
        self.rows = rows
        self.brought = tuple((k, spec.name) for k, spec in enumerate(self.spec.inputs) if spec.name not in tensors)
        for index, spec in enumerate(self.spec.inputs):
            if spec.name in tensors:
                self.read(index, tensors[spec.name][:rows])
        for index, spec in enumerate(self.spec.outputs):
            self.write(index, tensors[spec.name][:rows])


# Makes a new binding of a piece, for a context with room for the given number of samples.
_Bind: TypeAlias = Callable[[PieceSpec, int], HostBinding]


class HostDevice:
    """Open pieces. Calls from several threads may run at the same time: each has a context of its own.

    Args:
        target: name of the target, for messages.
        pieces: the pieces.
        tensors: all tensors and their lifetimes.
        bind: makes a new binding of a piece, for a context with room for the given number of samples.
    """

    max_rows = _MOST_ROWS

    def __init__(self, target: str, pieces: Sequence[PieceSpec], tensors: Sequence[TensorLife], bind: _Bind) -> None:
        self._target, self._tensors = target, tensors
        self._pieces = {piece.id: piece for piece in pieces}
        self._bind: _Bind | None = bind
        self._free: dict[int, list[HostContext]] = {}

    def context(self, rows: int) -> HostContext:
        """Return a context with room for the next power of two: the free one that was used last, or a new one.

        Raises:
            PieceError: the device is closed.
        """
        bind = self._bind  # read once: another thread may close the device meanwhile
        if bind is None:
            raise PieceError("the device is closed")
        capacity = 1 << (rows - 1).bit_length()
        free = self._free.setdefault(capacity, [])
        try:
            return free.pop()  # atomic, like append, so no lock is needed
        except IndexError:
            return HostContext(self, self._target, self._pieces, bind, HostBuffers(self._tensors, capacity))

    def give_back(self, context: HostContext, capacity: int) -> None:
        """Keep a context whose call has ended for the next call, unless the device is closed."""
        self._free.setdefault(capacity, []).append(context)
        if self._bind is None:
            self._free.clear()

    def close(self) -> None:
        """Release the pieces; calls that are running keep them until they end."""
        self._bind = None
        self._free.clear()


class HostParked(NamedTuple):
    """Samples outside of a context: name of each tensor to its values (rows, ...)."""

    rows: int
    tensors: dict[str, Array]


class _Stage(NamedTuple):
    """The engine calls up to an exit, and its threshold."""

    calls: tuple[Callable[[], object], ...]
    threshold: float
    leave: LeaveAt


class _Recording(NamedTuple):
    """The engine calls of a stage of a plan, for one sample.

    Between two pieces the processor's caches are filled by the engine, so that a line of Python takes ten times as long
    as in a loop. Recording avoids all look-ups: with nine exits on Fashion-MNIST, none taken, a call took 1.10 times
    the time of the engine alone, instead of 1.19 times.

    Attributes:
        steps: the recorded steps, kept so that their id stays unique.
        brings: the bindings with inputs in the caller's memory.
        stages: the calls up to each exit.
        rest: the calls after the last exit.
        names: call to the id of the piece that it runs, for messages.
    """

    steps: Sequence[Step]
    brings: tuple[HostBinding, ...]
    stages: tuple[_Stage, ...]
    rest: tuple[Callable[[], object], ...]
    names: dict[Callable[[], object], str]


class HostContext:
    """Buffers with the pieces bound to them, so that a run neither copies nor allocates inputs and outputs.

    This reduced the time of a chain of ten small segments in onnxruntime from 1.16 to 1.08 times that of the uncut
    model.
    """

    def __init__(
        self, device: HostDevice, target: str, pieces: Mapping[str, PieceSpec], bind: _Bind, buffers: HostBuffers
    ) -> None:
        self.rows = 0
        # A weak reference, since the device holds its free contexts: without a cycle, a session that is dropped is
        # freed at once.
        self._device = ref(device)
        self._target, self._pieces, self._bind, self._buffers = target, pieces, bind, buffers
        one = buffers.small if buffers.capacity == 1 else {}
        # The arrays that pieces are bound to. Small inputs are among them in a context for one sample.
        self._tensors: dict[str, Array] = {**buffers.tensors, **one}
        self._some: dict[str, Array] = {}
        self._bound: dict[tuple[str, bool], HostBinding] = {}
        self._recorded: dict[int, _Recording] = {}
        self._brought: dict[str, Array] = {}
        # Views of the buffers, kept while the number of samples stays the same.
        self._viewed, self._views = 0, dict[tuple[str, ...], list[Array]]()

    def set_input(self, name: str, array: npt.NDArray[np.float32]) -> None:
        """Set an input. It is read from the caller's memory unless it is small or no engine could read it there."""
        self.rows = len(array)
        small = self._buffers.small.get(name) if self._buffers.capacity == 1 else None
        if small is not None:
            small[:] = array
        elif type(array) is np.ndarray and array.flags.carray:
            self._brought[name] = array
        else:  # misaligned, read-only, in another order or of a subclass, which engines do not guarantee to accept
            self._brought[name] = np.array(array, np.float32, order="C")

    def run(self, piece: str, rows: Rows | None = None) -> None:
        """Run a piece. Raises PieceError."""
        bound = self._ready(piece, self.rows) if rows is None else self._ready_for_some(piece, rows)
        try:
            bound.call()
        except Exception as error:  # engines' exceptions share no base class
            raise self._failed(piece, error) from error
        if rows is not None:
            for spec in bound.spec.outputs:
                self._tensors[spec.name][rows] = self._some[spec.name][: len(rows)]

    def copy(self, to: str, source: str, rows: Rows | None = None) -> None:
        """Copy within the buffers."""
        target, values = self._tensors[to], self._array(source)
        if rows is None:
            target[: self.rows] = values[: self.rows]
        else:
            target[rows] = values[rows]

    def read(self, *names: str) -> list[Array]:
        """Return views of the buffers."""
        if self._viewed != self.rows:
            self._viewed = self.rows
            self._views.clear()
        found = self._views.get(names)
        if found is None:
            found = self._views[names] = [self._tensors[name][: self.rows] for name in names]
        return found

    def computed_rows(self, rows: int) -> int:
        """Return ``rows``: CPU engines compute exactly the samples that they are given."""
        return rows

    def run_until_exit(self, steps: Sequence[Step]) -> tuple[LeaveAt | None, npt.NDArray[np.float32]]:
        """Run the recording of these steps, made on first use. Raises PieceError if a piece fails."""
        recording = self._recorded.get(id(steps))
        if recording is None:
            recording = self._record(steps)
        for bound in recording.brings:
            for index, name in bound.brought:
                bound.read_brought(index, self._brought[name])
        score = self._tensors[CONFIDENCE]
        try:
            for stage in recording.stages:
                for call in stage.calls:
                    call()
                if not 0.0 < score.item(0) <= stage.threshold:
                    return stage.leave, score
            for call in recording.rest:
                call()
        except PieceError:
            raise
        except Exception as error:  # engines' exceptions share no base class
            raise self._failed(recording.names[call], error) from error
        return recording.stages[-1].leave if recording.stages else None, score

    def keep(self, order: Rows, tensors: Sequence[str]) -> None:
        """Copy samples within the buffers."""
        places = np.flatnonzero(order != np.arange(len(order)))
        sources = order[places]
        for name in tensors:
            array = self._array(name)
            if name in self._brought:
                self._brought[name] = array[order]
            else:
                array[places] = array[sources]
        self.rows = len(order)

    def gather(self, rows: Rows, tensors: Sequence[str]) -> HostParked:
        """Copy samples out of the buffers."""
        return HostParked(len(rows), {name: self._array(name)[rows] for name in tensors})

    def append(self, parked: HostParked, start: int, stop: int) -> None:
        """Copy samples into the buffers, after those that they hold."""
        before, self.rows = self.rows, self.rows + stop - start
        for name, array in parked.tensors.items():
            if name in self._buffers.inputs:
                known = self._brought[name][:before] if before else array[:0]
                self._brought[name] = np.concatenate([known, array[start:stop]])
            else:
                self._tensors[name][before : self.rows] = array[start:stop]

    def wait(self) -> None:
        """Return at once, as :meth:`run` is synchronous."""

    def __enter__(self) -> HostContext:
        return self

    def __exit__(self, *_: object) -> None:
        self._brought.clear()
        self.rows = 0
        if (device := self._device()) is not None:
            device.give_back(self, self._buffers.capacity)

    def _array(self, name: str) -> Array:
        """Return the memory of a tensor: in the buffers, or the caller's memory of an input."""
        brought = self._brought.get(name)
        return self._tensors[name] if brought is None else brought

    def _failed(self, piece: str, error: Exception) -> PieceError:
        return PieceError(f"piece {piece} failed in {self._target}: {error}")

    def _ready(self, piece: str, rows: int) -> HostBinding:
        """Return a piece, bound to the buffers for ``rows`` samples and to the inputs of this call."""
        bound = self._binding(piece, self._tensors, rows, some=False)
        for index, name in bound.brought:
            bound.read_brought(index, self._brought[name])
        return bound

    def _ready_for_some(self, piece: str, rows: Rows) -> HostBinding:
        """Return a piece bound to arrays for a part of the samples, with their inputs copied into these."""
        spec = self._pieces[piece]
        for tensor in (*spec.inputs, *spec.outputs):
            if tensor.name not in self._some:
                shape = (self._buffers.capacity, *map(int, tensor.shape[1:]))
                self._some[tensor.name] = np.zeros(shape, tensor.dtype)
        for tensor in spec.inputs:
            self._some[tensor.name][: len(rows)] = self._array(tensor.name)[rows]
        return self._binding(piece, self._some, len(rows), some=True)

    def _binding(self, piece: str, tensors: Mapping[str, Array], rows: int, *, some: bool) -> HostBinding:
        bound = self._bound.get((piece, some))
        if bound is None:
            bound = self._bound[piece, some] = self._bind(self._pieces[piece], self._buffers.capacity)
        if bound.rows != rows:
            try:
                bound.bind(tensors, rows)
            except Exception as error:  # of any type: the outputs of a graph may differ from the manifest
                bound.rows = 0
                raise self._failed(piece, error) from error
        return bound

    def _record(self, steps: Sequence[Step]) -> _Recording:
        """Record the engine calls of a stage. The bindings stay valid, as this context always holds one sample."""
        brings: list[HostBinding] = []
        stages: list[_Stage] = []
        names: dict[Callable[[], object], str] = {}
        calls: list[Callable[[], object]] = []
        for step in steps:
            if isinstance(step, LeaveAt):
                stages.append(_Stage(tuple(calls), float(step.threshold), step))
                calls.clear()
            elif isinstance(step, Run):
                bound = self._ready(step.piece, 1)
                brings += [bound] if bound.brought else []
                names[bound.call] = step.piece
                calls.append(bound.call)
            elif isinstance(step, Copy):
                calls.append(self._copying(step.copies))
            else:
                calls.append(self._choosing(step))
        if len(self._recorded) >= _MOST_RECORDED:
            self._recorded.clear()
        recording = _Recording(steps, tuple(brings), tuple(stages), tuple(calls), names)
        self._recorded[id(steps)] = recording
        return recording

    def _copying(self, copies: Mapping[str, str]) -> Callable[[], object]:
        context = ref(self)  # a strong reference would create a cycle with the recording

        def call() -> None:
            for to, source in copies.items():
                context().copy(to, source)  # type: ignore[union-attr]

        return call

    def _choosing(self, step: Choosing) -> Callable[[], object]:
        context = ref(self)

        def call() -> None:
            own = context()
            assert own is not None
            case = step.cases[int(cases_of(step, own.read(step.by)[0])[0])]
            if case.piece is not None:
                own.run(case.piece)
            for to, source in case.copies.items():
                own.copy(to, source)

        return call
