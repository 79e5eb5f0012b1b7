"""Devices of engines that compute in the memory of the host: pieces bound to buffers that stay.

What is common to them; an engine adds how it binds an array to an input or an output (:class:`HostBinding`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias
from weakref import ref

import numpy as np
import numpy.typing as npt

from dyce_runtime.bundle.manifest import LOGITS, TensorSpec
from dyce_runtime.errors import PieceError
from dyce_runtime.execution.contracts import PieceSpec, carried
from dyce_runtime.execution.plan import Step
from dyce_targets.cpu.host_buffers import HostBuffers

# Plans that a lane keeps ready; an application turns between a few.
_MOST_RECORDED = 64


class HostBinding(ABC):
    """A piece bound to one side of the buffers of a lane, for a number of samples.

    Engines keep the address of an array, not the array: the lane owns whatever is bound, as long as it is bound.

    Attributes:
        spec: the piece.
        call: the engine's call, which may raise anything.
        rows: the number of samples; 0 before :meth:`bind`.
        takes_images: whether it reads those that a call brings, instead of a buffer.
    """

    def __init__(self, spec: PieceSpec, call: Callable[[], object]) -> None:
        self.spec, self.call, self.rows, self.takes_images = spec, call, 0, False

    @abstractmethod
    def read(self, index: int, array: npt.NDArray[Any]) -> None:
        """Read an input from there, in this call and all further ones."""

    @abstractmethod
    def write(self, index: int, array: npt.NDArray[Any]) -> None:
        """Write an output there."""

    @abstractmethod
    def read_images(self, images: npt.NDArray[np.float32]) -> None:
        """Read the images of this call, its only input: C-contiguous, aligned and writeable."""

    def bind(self, buffers: HostBuffers, side: int, rows: int) -> None:
        """Read from one side, unless it is the images, and write to the other."""
        inputs, outputs = self.spec.inputs, self.spec.outputs
        self.rows = rows
        self.takes_images = buffers.are_images(inputs) and (rows > 1 or inputs[0].name not in buffers.small)
        if not self.takes_images:
            for index, array in enumerate(buffers.views(inputs, side, rows)):
                self.read(index, array)
        for index, array in enumerate(buffers.views(outputs, side ^ 1, rows)):
            self.write(index, array)


# A new binding of a piece, for a lane of so many samples at most.
_Bind: TypeAlias = Callable[[PieceSpec, int], HostBinding]


class HostDevice:
    """Open pieces. Calls from several threads are safe: each has a lane of its own."""

    def __init__(self, target: str, pieces: Sequence[PieceSpec], bind: _Bind) -> None:
        self._target = target
        self._pieces = {piece.id: piece for piece in pieces}
        self._bind: _Bind | None = bind
        self._free: dict[int, list[HostLane]] = {}

    def lane(self, rows: int) -> HostLane:
        """A lane for the next power of two; a free one if there is one, the one used last."""
        bind = self._bind  # read once: another thread may close the device meanwhile
        if bind is None:
            raise PieceError("the device is closed")
        capacity = 1 << (rows - 1).bit_length()
        free = self._free.setdefault(capacity, [])
        try:
            return free.pop()  # one step, like append: no lock is needed
        except IndexError:
            buffers = HostBuffers(self._pieces.values(), capacity)
            return HostLane(self, self._target, self._pieces, bind, buffers)

    def give_back(self, lane: HostLane, capacity: int) -> None:
        """The call that had the lane has ended. Its buffers are kept for the next one, unless the device is closed."""
        self._free.setdefault(capacity, []).append(lane)
        if self._bind is None:
            self._free.clear()

    def close(self) -> None:
        """Forget the pieces; calls that are running keep them until they end."""
        self._bind = None
        self._free.clear()


class Taken(NamedTuple):
    """Samples outside of a lane: one array (samples, ...) for each tensor that is live, or left for later."""

    rows: int
    specs: tuple[TensorSpec, ...]
    arrays: list[npt.NDArray[Any]]
    left: dict[str, npt.NDArray[Any]]


class _Stage(NamedTuple):
    calls: tuple[Callable[[], object], ...]
    threshold: float
    step: Step


class _Recording(NamedTuple):
    """The engine calls of a plan, from one image to the next, for one sample.

    Between two pieces the processor's caches hold what the engine left there, and every line of Python that runs costs
    ten times what it costs in a loop. So nothing is looked up: with nine exits on Fashion-MNIST, none taken, a
    call took 1.19 times as long as the engine needs, and recorded 1.10 times.

    Attributes:
        steps: kept, so that their id stays theirs.
        start: what reads the images.
        names: the piece that a call runs.
    """

    steps: Sequence[Step]
    start: HostBinding
    stages: tuple[_Stage, ...]
    names: dict[Callable[[], object], str]


class HostLane:
    """Buffers with the pieces bound to them: a run then neither copies nor allocates what goes in and out.

    Bound so, a chain of ten small segments in onnxruntime took 1.08 times as long as the uncut model instead of 1.16.
    """

    def __init__(
        self, device: HostDevice, target: str, pieces: Mapping[str, PieceSpec], bind: _Bind, buffers: HostBuffers
    ) -> None:
        self.rows = 0
        # Weak, since the device holds its free lanes: without a cycle a session that is dropped is freed at once.
        self._device = ref(device)
        self._target, self._pieces, self._bind, self._buffers = target, pieces, bind, buffers
        self._leaves = {
            id: names for id, piece in pieces.items() if (names := [spec.name for spec in carried(piece.outputs)])
        }
        self._left: list[str] = []
        # By the side that a piece reads from.
        self._bound: tuple[dict[str, HostBinding], dict[str, HostBinding]] = ({}, {})
        self._recorded: dict[int, _Recording] = {}
        self._viewed, self._views = 0, buffers.decision(0)
        self._side = 0
        self._specs: tuple[TensorSpec, ...] = ()
        self._images: npt.NDArray[np.float32] | None = None

    def put(self, images: npt.NDArray[np.float32], name: str) -> None:
        """Start with images, which are read where they are unless it is a small one."""
        self.rows = len(images)
        small = self._buffers.small.get(name) if self.rows == 1 else None
        if small is not None:
            small[:] = images
        elif type(images) is np.ndarray and images.flags.carray:
            self._images = images
        else:  # misaligned, read-only, in another order or of a subclass: no engine promises to take these
            self._images = np.array(images, np.float32, order="C")

    def run(self, piece: str) -> None:
        """Run a segment or a span. Raises PieceError."""
        self._run(piece)
        outputs = self._pieces[piece].outputs
        self._specs = () if outputs[0].name == LOGITS else outputs
        self._side ^= 1

    def rewind(self) -> None:
        """Undo the last run: its inputs are still there, on the other side."""
        self._side ^= 1

    def decide(self, head: str | None = None) -> npt.NDArray[np.float32]:
        """Run a head, or look at what the last run decided. Raises PieceError."""
        if head is not None:
            self._run(head)
        return self._decision()[1]

    def until_confident(self, steps: Sequence[Step]) -> tuple[Step, npt.NDArray[np.float32]]:
        """Run what was recorded for these steps. Raises PieceError."""
        recording = self._recorded.get(id(steps))
        if recording is None:
            recording = self._record(steps)
        if recording.start.takes_images and self._images is not None:
            recording.start.read_images(self._images)
        confidence = self._buffers.confidence
        try:
            for stage in recording.stages:
                for call in stage.calls:
                    call()
                if not 0.0 < confidence.item(0) <= stage.threshold:
                    break
        except Exception as error:  # engines' exceptions share no base class
            raise self._failed(recording.names[call], error) from error
        return stage.step, confidence

    def answers(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Logits and labels of the last decision."""
        logits, _, label = self._decision()
        return logits, label

    def compact(self, sources: npt.NDArray[np.intp], places: npt.NDArray[np.intp], rows: int) -> None:
        """Copy samples within the buffers."""
        for array in (*self.live(), *self.left().values()):
            array[places] = array[sources]
        self.rows = rows

    def take(self, rows: npt.NDArray[np.intp]) -> Taken:
        """Copies."""
        left = {name: array[rows] for name, array in self.left().items()}
        return Taken(len(rows), self._specs, [array[rows] for array in self.live()], left)

    def add(self, handle: Taken) -> None:
        """Copy samples behind those that are there."""
        before, self.rows, self._specs, self._left = self.rows, self.rows + handle.rows, handle.specs, [*handle.left]
        for array, added in zip(
            (*self.live(), *self.left().values()), (*handle.arrays, *handle.left.values()), strict=True
        ):
            array[before:] = added

    def live(self) -> list[npt.NDArray[Any]]:
        """Views of the buffers that the last run wrote to."""
        return self._buffers.views(self._specs, self._side, self.rows)

    def left(self) -> dict[str, npt.NDArray[Any]]:
        """Views of what was left for later."""
        return {name: self._buffers.left[name][: self.rows] for name in self._left}

    def __enter__(self) -> HostLane:
        return self

    def __exit__(self, *_: object) -> None:
        self._images = None
        self.rows = self._side = 0
        self._left = []
        if (device := self._device()) is not None:
            device.give_back(self, self._buffers.capacity)

    def _run(self, piece: str) -> None:
        call = self._ready(piece).call
        try:
            call()
        except Exception as error:  # engines' exceptions share no base class
            raise self._failed(piece, error) from error
        if piece in self._leaves:
            self._left = list(dict.fromkeys([*self._left, *self._leaves[piece]]))

    def _failed(self, piece: str, error: Exception) -> PieceError:
        return PieceError(f"piece {piece} failed in {self._target}: {error}")

    def _decision(self) -> list[npt.NDArray[Any]]:
        """Views of what was decided last, kept while the number of samples stays."""
        if self._viewed != self.rows:
            self._viewed, self._views = self.rows, self._buffers.decision(self.rows)
        return self._views

    def _record(self, steps: Sequence[Step]) -> _Recording:
        """All engine calls of a plan, bound: a lane for one sample never has another number of them."""
        names, stages, start = {}, [], None
        for step in steps:
            calls = []
            for piece in (*step.body, *([step.head] if step.head else [])):
                bound = self._ready(piece)
                start = start or bound
                calls.append(bound.call)
                names[bound.call] = piece
                self._side ^= piece != step.head
            stages.append(_Stage(tuple(calls), float(step.threshold), step))
        assert start is not None
        if len(self._recorded) >= _MOST_RECORDED:
            self._recorded.clear()
        recording = self._recorded[id(steps)] = _Recording(steps, start, tuple(stages), names)
        return recording

    def _ready(self, piece: str) -> HostBinding:
        """A piece, bound to the side that is live and to the number of samples there."""
        bound = self._bound[self._side].get(piece)
        if bound is None:
            bound = self._bound[self._side][piece] = self._bind(self._pieces[piece], self._buffers.capacity)
        if bound.rows != self.rows:
            bound.bind(self._buffers, self._side, self.rows)
        if bound.takes_images and self._images is not None:
            bound.read_images(self._images)
        return bound
