"""ONNX Runtime on a CPU."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dyce_runtime.contracts import PieceSpec, TargetSpec
from dyce_runtime.errors import BundleError, PieceError, TargetError
from dyce_targets.host_buffers import HostBuffers

if TYPE_CHECKING:
    import onnxruntime

    from dyce_runtime.manifest import TensorSpec
    from dyce_runtime.plan import Step


PROVIDER = "CPUExecutionProvider"
# Plans that a lane keeps ready; an application turns between a few.
_MOST_RECORDED = 64


class OnnxRuntimeCpu:
    """Runs the ONNX files as they are."""

    name = "onnxruntime"
    spans = True

    def available(self) -> str | None:
        """None, or that onnxruntime is not installed."""
        if importlib.util.find_spec("onnxruntime") is None:
            return "onnxruntime is not installed; pip install 'dyce-export[cpu]'"
        return None

    def best_batch(self, spec: TargetSpec, macs: int) -> int:
        """About 2 GMACs per thread: small models need many to be worth a call, of large ones many leave the caches."""
        return min(max(1, 2_000_000_000 // max(macs, 1)), 64) * (spec.threads or os.cpu_count() or 1)

    def compile(self, piece: PieceSpec, spec: TargetSpec) -> Path:
        """The ONNX file itself."""
        return piece.path

    def open(self, pieces: Sequence[PieceSpec], spec: TargetSpec) -> OnnxRuntimeDevice:
        """Load every piece. Raises TargetError, or BundleError for a piece that does not load."""
        reason = self.available()
        if reason:
            raise TargetError(f"{self.name}: {reason}")
        return OnnxRuntimeDevice(pieces, spec)


class OnnxRuntimeDevice:
    """Loaded pieces. Calls from several threads are safe: each has a lane of its own."""

    def __init__(self, pieces: Sequence[PieceSpec], spec: TargetSpec) -> None:
        options = session_options(spec)
        self._pieces = {piece.id: piece for piece in pieces}
        self._sessions = {piece.id: _open(piece, options) for piece in pieces}
        self._free: dict[int, list[OnnxRuntimeLane]] = {}

    def lane(self, rows: int) -> OnnxRuntimeLane:
        """A lane for the next power of two; a free one if there is one, the one used last."""
        if not self._sessions:
            raise PieceError("the device is closed")
        capacity = 1 << (rows - 1).bit_length()
        free = self._free.setdefault(capacity, [])
        try:
            return free.pop()  # one step, like append: no lock is needed
        except IndexError:
            return OnnxRuntimeLane(self._pieces, self._sessions, HostBuffers(self._pieces.values(), capacity), free)

    def close(self) -> None:
        """Forget the sessions; calls that are running keep them until they end."""
        self._sessions, self._free = {}, {}


class Taken(NamedTuple):
    """Samples outside of a lane: one array (samples, ...) for each tensor."""

    specs: tuple[TensorSpec, ...]
    arrays: list[npt.NDArray[Any]]


class OnnxRuntimeLane:
    """Pieces bound to buffers: a run then neither copies nor allocates what goes in and out.

    Bound so, a chain of ten small segments took 1.08 times as long as the uncut model instead of 1.16.
    """

    def __init__(
        self,
        pieces: Mapping[str, PieceSpec],
        sessions: Mapping[str, onnxruntime.InferenceSession],
        buffers: HostBuffers,
        free: list[OnnxRuntimeLane],
    ) -> None:
        self.rows = 0
        self._pieces, self._sessions, self._buffers, self._free = pieces, sessions, buffers, free
        # By the side that a piece reads from.
        self._bound: tuple[dict[str, _Bound], dict[str, _Bound]] = ({}, {})
        self._recorded: dict[int, _Recording] = {}
        self._viewed, self._views = 0, buffers.decision(0)
        self._side = 0
        self._specs: tuple[TensorSpec, ...] = ()
        self._images: npt.NDArray[np.float32] | None = None

    def put(self, images: npt.NDArray[np.float32]) -> None:
        """Start with images, which are read where they are unless it is a small one."""
        self.rows = len(images)
        if self.rows == 1 and self._buffers.image is not None:
            self._buffers.image[:] = images
        else:
            self._images = np.ascontiguousarray(images)

    def run(self, piece: str) -> None:
        """Run a segment or a span. Raises PieceError."""
        bound = self._ready(piece)
        bound.run()
        self._specs = bound.spec.outputs
        self._side ^= 1

    def rewind(self) -> None:
        """Undo the last run: its inputs are still there, on the other side."""
        self._side ^= 1

    def decide(self, head: str | None = None) -> npt.NDArray[np.float32]:
        """Run a head, or look at what the last run decided. Raises PieceError."""
        if head is not None:
            self._ready(head).run()
        return self._decision()[1]

    def until_confident(self, steps: Sequence[Step]) -> tuple[Step, npt.NDArray[np.float32]]:
        """Run what was recorded for these steps. Raises PieceError."""
        recording = self._recorded.get(id(steps))
        if recording is None:
            recording = self._record(steps)
        if self._images is not None:
            recording.start.bind_images(self._images)
        confidence = self._buffers.confidence
        try:
            for stage in recording.stages:
                for call in stage.calls:
                    call()
                if confidence[0] > stage.threshold:
                    break
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise _failed(recording.names[call], error) from error
        return stage.step, confidence

    def answers(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Logits and labels of the last decision."""
        logits, _, label = self._decision()
        return logits, label

    def compact(self, sources: npt.NDArray[np.intp], places: npt.NDArray[np.intp], rows: int) -> None:
        """Copy samples within the buffers."""
        for array in self.live():
            array[places] = array[sources]
        self.rows = rows

    def take(self, rows: npt.NDArray[np.intp]) -> Taken:
        """Copies."""
        return Taken(self._specs, [array[rows] for array in self.live()])

    def add(self, handle: Taken) -> None:
        """Copy samples behind those that are there."""
        before, self.rows, self._specs = self.rows, self.rows + len(handle.arrays[0]), handle.specs
        for array, added in zip(self.live(), handle.arrays, strict=True):
            array[before:] = added

    def live(self) -> list[npt.NDArray[Any]]:
        """Views of the buffers that the last run wrote to."""
        return self._buffers.views(self._specs, self._side, self.rows)

    def __enter__(self) -> OnnxRuntimeLane:
        return self

    def __exit__(self, *_: object) -> None:
        self._images = None
        self.rows = self._side = 0
        self._free.append(self)

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
            stages.append(_Stage(tuple(calls), step.threshold, step))
        assert start is not None
        if len(self._recorded) >= _MOST_RECORDED:
            self._recorded.clear()
        recording = self._recorded[id(steps)] = _Recording(steps, start, tuple(stages), names)
        return recording

    def _ready(self, piece: str) -> _Bound:
        """A piece, bound to the side that is live and to the number of samples there."""
        bound = self._bound[self._side].get(piece)
        if bound is None:
            bound = self._bound[self._side][piece] = _Bound(self._pieces[piece], self._sessions[piece])
        if bound.rows != self.rows:
            bound.bind(self._buffers, self._side, self.rows)
        if bound.reads_images and self._images is not None:
            bound.bind_images(self._images)
        return bound


class _Bound:
    """A piece bound to one side of the buffers, for a number of samples.

    Attributes:
        rows: that number; 0 before :meth:`bind`.
        reads_images: whether it reads those that a call brings.
        call: the engine's call, which may raise anything.
    """

    def __init__(self, spec: PieceSpec, session: onnxruntime.InferenceSession) -> None:
        self.spec, self.rows, self.reads_images = spec, 0, False
        self._binding = session.io_binding()
        self.call = _engine_call(session, self._binding)

    def run(self) -> None:
        """Raises PieceError."""
        try:
            self.call()
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise _failed(self.spec.id, error) from error

    def bind(self, buffers: HostBuffers, side: int, rows: int) -> None:
        """Read from one side, unless it is the images, and write to the other."""
        inputs, outputs = self.spec.inputs, self.spec.outputs
        self.reads_images = buffers.are_images(inputs) and (rows > 1 or buffers.image is None)
        if not self.reads_images:
            for spec, array in zip(inputs, buffers.views(inputs, side, rows), strict=True):
                self._binding.bind_cpu_input(spec.name, array)
        for spec, array in zip(outputs, buffers.views(outputs, side ^ 1, rows), strict=True):
            self._binding.bind_output(spec.name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        self.rows = rows

    def bind_images(self, images: npt.NDArray[np.float32]) -> None:
        """Read the images of this call."""
        name = self.spec.inputs[0].name
        if self.rows == 1:  # quicker, but the engine holds on to the image until the next call
            self._binding.bind_cpu_input(name, images)
        else:
            self._binding.bind_input(name, "cpu", 0, images.dtype, images.shape, images.ctypes.data)


class _Stage(NamedTuple):
    calls: tuple[Callable[[], object], ...]
    threshold: np.float32
    step: Step


class _Recording(NamedTuple):
    """The engine calls of a plan, for one sample.

    Between two pieces the processor's caches hold what the engine left there, and every line of Python that runs costs
    ten times what it costs in a loop. So nothing is looked up: with nine exits on Fashion-MNIST, none taken, a
    call took 1.19 times as long as the engine needs, and recorded 1.10 times.

    Attributes:
        steps: kept, so that their id stays theirs.
        start: what reads the images.
        names: the piece that a call runs.
    """

    steps: Sequence[Step]
    start: _Bound
    stages: tuple[_Stage, ...]
    names: dict[Callable[[], object], str]


def _engine_call(session: onnxruntime.InferenceSession, binding: onnxruntime.IOBinding) -> Callable[[], object]:
    """``session.run_with_iobinding(binding)`` without its wrapper, where that looks as it has since version 1.0.

    The wrapper of 1.31 asks about captures on WebGPU first, which took 3 of the 9 microseconds of a tiny graph.
    """
    inner, bound = getattr(session, "_sess", None), getattr(binding, "_iobinding", None)
    if inner is None or bound is None:
        return partial(session.run_with_iobinding, binding)
    return partial(inner.run_with_iobinding, bound, None)


def _failed(piece: str, error: Exception) -> PieceError:
    return PieceError(f"piece {piece} failed in onnxruntime: {error}")


_global_pool_threads: int | None = None


def session_options(spec: TargetSpec) -> onnxruntime.SessionOptions:
    """Options under which the sessions of a chain do not fight over the cores.

    With the default, a spinning pool per session, a chain of four ran 4.5 times slower than the uncut model.
    A private pool therefore does not spin. The global pool is shared by the whole process: once it exists,
    plain ``InferenceSession(path)`` calls fail, so it is made only when asked for.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    if spec.pool == "global":
        _make_global_pool(spec.threads)
        options.use_per_session_threads = False
        return options
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    if spec.threads is not None:
        options.intra_op_num_threads = spec.threads
    return options


def _make_global_pool(threads: int | None) -> None:
    global _global_pool_threads
    import onnxruntime as ort

    wanted = threads or 0
    if _global_pool_threads is None:
        try:
            ort.set_global_thread_pool_sizes(wanted, 1)
        except Exception as error:  # the application made the pool before us; onnxruntime's exceptions share no base
            raise TargetError(
                f"onnxruntime's global pool cannot be made: {error}", hint="Use pool='private'."
            ) from error
        _global_pool_threads = wanted
    elif _global_pool_threads != wanted:
        raise TargetError(
            f"onnxruntime's global pool already has {_global_pool_threads or 'its default number of'} threads; "
            f"found a request for {wanted or 'the default'}",
            hint="The pool is made once per process: use the same number everywhere, or pool='private'.",
        )


def _open(piece: PieceSpec, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    import onnxruntime as ort

    try:
        # Without fallback: it would print to stdout and try again with other options.
        session = ort.InferenceSession(str(piece.path), options, providers=[PROVIDER], enable_fallback=0)
    except Exception as error:  # onnxruntime's exceptions share no base class
        if "global thread pool" in str(error):
            raise TargetError(
                "this process uses onnxruntime's global thread pool, which forbids private ones",
                hint="Load with pool='global'.",
            ) from error
        raise BundleError(f"{piece.path} does not load in onnxruntime {ort.__version__}: {error}") from error
    if session.get_providers() != [PROVIDER]:
        raise TargetError(f"onnxruntime gave {session.get_providers()}; expected [{PROVIDER!r}]")
    return session
