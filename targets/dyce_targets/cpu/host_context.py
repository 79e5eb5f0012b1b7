"""Devices of engines that compute in the memory of the host: pieces bound to buffers that stay.

What is common to them; an engine adds how it binds an array to an input or an output (:class:`HostBinding`).
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

# Plans that a context keeps ready; an application turns between a few.
_MOST_RECORDED = 64
# Samples that fit into one context: more would take memory without being any faster.
_MOST_ROWS = 1 << 16


class HostBinding(ABC):
    """A piece bound to arrays, for a number of samples.

    Engines keep the address of an array, not the array: the context owns whatever is bound, as long as it is bound.

    Attributes:
        spec: the piece.
        call: the engine's call, which may raise anything.
        rows: the number of samples; 0 before :meth:`bind`.
        brought: of the inputs that a call brings, which are bound anew for it: index and name.
    """

    def __init__(self, spec: PieceSpec, call: Callable[[], object]) -> None:
        self.spec, self.call, self.rows = spec, call, 0
        self.brought: tuple[tuple[int, str], ...] = ()

    @abstractmethod
    def read(self, index: int, array: Array) -> None:
        """Read an input from there, in this call and all further ones."""

    @abstractmethod
    def write(self, index: int, array: Array) -> None:
        """Write an output there."""

    @abstractmethod
    def read_brought(self, index: int, array: Array) -> None:
        """Read an input that this call brings: C-contiguous, aligned and writeable."""

    def bind(self, tensors: Mapping[str, Array], rows: int) -> None:
        """Read from and write to these tensors; what is not among them a call brings."""
        self.rows = rows
        self.brought = tuple((k, spec.name) for k, spec in enumerate(self.spec.inputs) if spec.name not in tensors)
        for index, spec in enumerate(self.spec.inputs):
            if spec.name in tensors:
                self.read(index, tensors[spec.name][:rows])
        for index, spec in enumerate(self.spec.outputs):
            self.write(index, tensors[spec.name][:rows])


# Makes a new binding of a piece, for a context that holds at most that number of samples.
_Bind: TypeAlias = Callable[[PieceSpec, int], HostBinding]


class HostDevice:
    """Open pieces. Calls from several threads are safe: each has a context of its own."""

    max_rows = _MOST_ROWS

    def __init__(self, target: str, pieces: Sequence[PieceSpec], tensors: Sequence[TensorLife], bind: _Bind) -> None:
        self._target, self._tensors = target, tensors
        self._pieces = {piece.id: piece for piece in pieces}
        self._bind: _Bind | None = bind
        self._free: dict[int, list[HostContext]] = {}

    def context(self, rows: int) -> HostContext:
        """A context for the next power of two; a free one if there is one, the one used last."""
        bind = self._bind  # read once: another thread may close the device meanwhile
        if bind is None:
            raise PieceError("the device is closed")
        capacity = 1 << (rows - 1).bit_length()
        free = self._free.setdefault(capacity, [])
        try:
            return free.pop()  # one step, like append: no lock is needed
        except IndexError:
            return HostContext(self, self._target, self._pieces, bind, HostBuffers(self._tensors, capacity))

    def give_back(self, context: HostContext, capacity: int) -> None:
        """The call that had the context has ended. It is kept for the next one, unless the device is closed."""
        self._free.setdefault(capacity, []).append(context)
        if self._bind is None:
            self._free.clear()

    def close(self) -> None:
        """Forget the pieces; calls that are running keep them until they end."""
        self._bind = None
        self._free.clear()


class HostParked(NamedTuple):
    """Samples outside of a context: (rows, ...) of each tensor, by its name."""

    rows: int
    tensors: dict[str, Array]


class _Stage(NamedTuple):
    calls: tuple[Callable[[], object], ...]
    threshold: float
    leave: LeaveAt


class _Recording(NamedTuple):
    """The engine calls of a stage of a plan, for one sample.

    Between two pieces the processor's caches hold what the engine left there, and every line of Python that runs costs
    ten times what it costs in a loop. So nothing is looked up: with nine exits on Fashion-MNIST, none taken, a
    call took 1.19 times as long as the engine needs, and recorded 1.10 times.

    Attributes:
        steps: kept, so that their id stays theirs.
        brings: the bindings that read what a call brings.
        stages: up to a decision each.
        rest: what runs after the last decision.
        names: the piece that a call runs.
    """

    steps: Sequence[Step]
    brings: tuple[HostBinding, ...]
    stages: tuple[_Stage, ...]
    rest: tuple[Callable[[], object], ...]
    names: dict[Callable[[], object], str]


class HostContext:
    """Buffers with the pieces bound to them: a run then neither copies nor allocates what goes in and out.

    Bound so, a chain of ten small segments in onnxruntime took 1.08 times as long as the uncut model instead of 1.16.
    """

    def __init__(
        self, device: HostDevice, target: str, pieces: Mapping[str, PieceSpec], bind: _Bind, buffers: HostBuffers
    ) -> None:
        self.rows = 0
        # Weak, since the device holds its free contexts: without a cycle a session that is dropped is freed at once.
        self._device = ref(device)
        self._target, self._pieces, self._bind, self._buffers = target, pieces, bind, buffers
        one = buffers.small if buffers.capacity == 1 else {}
        # What pieces are bound to; of a call with one sample small inputs, too.
        self._tensors: dict[str, Array] = {**buffers.tensors, **one}
        self._some: dict[str, Array] = {}
        self._bound: dict[tuple[str, bool], HostBinding] = {}
        self._recorded: dict[int, _Recording] = {}
        self._brought: dict[str, Array] = {}
        # Views of the buffers, kept while the number of samples stays.
        self._viewed, self._views = 0, dict[tuple[str, ...], list[Array]]()

    def set_input(self, name: str, array: npt.NDArray[np.float32]) -> None:
        """Bring an input, which is read where it is unless it is a small one."""
        self.rows = len(array)
        small = self._buffers.small.get(name) if self._buffers.capacity == 1 else None
        if small is not None:
            small[:] = array
        elif type(array) is np.ndarray and array.flags.carray:
            self._brought[name] = array
        else:  # misaligned, read-only, in another order or of a subclass: no engine promises to take these
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
        """Views of the buffers."""
        if self._viewed != self.rows:
            self._viewed = self.rows
            self._views.clear()
        found = self._views.get(names)
        if found is None:
            found = self._views[names] = [self._tensors[name][: self.rows] for name in names]
        return found

    def computed_rows(self, rows: int) -> int:
        """Engines compute what they are asked for and no more."""
        return rows

    def run_until_exit(self, steps: Sequence[Step]) -> tuple[LeaveAt | None, npt.NDArray[np.float32]]:
        """Run what was recorded for these steps. Raises PieceError."""
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
        """Copies."""
        return HostParked(len(rows), {name: self._array(name)[rows] for name in tensors})

    def append(self, parked: HostParked, start: int, stop: int) -> None:
        """Copy samples to the places after those that are there."""
        before, self.rows = self.rows, self.rows + stop - start
        for name, array in parked.tensors.items():
            if name in self._buffers.inputs:
                known = self._brought[name][:before] if before else array[:0]
                self._brought[name] = np.concatenate([known, array[start:stop]])
            else:
                self._tensors[name][before : self.rows] = array[start:stop]

    def wait(self) -> None:
        """Return at once: a run has ended when :meth:`run` returns."""

    def __enter__(self) -> HostContext:
        return self

    def __exit__(self, *_: object) -> None:
        self._brought.clear()
        self.rows = 0
        if (device := self._device()) is not None:
            device.give_back(self, self._buffers.capacity)

    def _array(self, name: str) -> Array:
        """Where a tensor is: in the buffers, or where a call brought it."""
        brought = self._brought.get(name)
        return self._tensors[name] if brought is None else brought

    def _failed(self, piece: str, error: Exception) -> PieceError:
        return PieceError(f"piece {piece} failed in {self._target}: {error}")

    def _ready(self, piece: str, rows: int) -> HostBinding:
        """A piece, bound to the buffers for a number of samples and to what this call has brought."""
        bound = self._binding(piece, self._tensors, rows, some=False)
        for index, name in bound.brought:
            bound.read_brought(index, self._brought[name])
        return bound

    def _ready_for_some(self, piece: str, rows: Rows) -> HostBinding:
        """A piece, bound to a copy of what it reads of some of the samples, and to room for what it writes of them."""
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
            except Exception as error:  # as above: a graph may write something else than the manifest says
                bound.rows = 0
                raise self._failed(piece, error) from error
        return bound

    def _record(self, steps: Sequence[Step]) -> _Recording:
        """All engine calls of a stage, bound: a context for one sample never has another number of them."""
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
        context = ref(self)  # a recording that held its context would keep it for ever

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
