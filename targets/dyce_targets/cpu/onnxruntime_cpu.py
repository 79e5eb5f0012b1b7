"""The target ``onnxruntime``: ONNX Runtime on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from dyce_runtime.errors import BundleError, TargetError
from dyce_runtime.execution.contracts import PieceSpec, TargetSpec
from dyce_runtime.execution.memory import TensorLife
from dyce_targets import installation
from dyce_targets.cpu.host_context import HostBinding, HostDevice
from dyce_targets.cpu.processors import CpuTarget

if TYPE_CHECKING:
    import onnxruntime


PROVIDER = "CPUExecutionProvider"


class OnnxRuntimeCpu(CpuTarget):
    """ONNX Runtime's CPU provider, which runs the ONNX files directly."""

    name = "onnxruntime"
    extra = "cpu"

    def load(self) -> ModuleType:
        """Import onnxruntime. Raises TargetError if it is not installed or broken."""
        return installation.load("onnxruntime", "InferenceSession", self.install)

    def _open(self, pieces: Sequence[PieceSpec], tensors: Sequence[TensorLife], spec: TargetSpec) -> HostDevice:
        if spec.precision != "float32":
            raise TargetError(
                f"{self.name} computes in the precision of the graphs; found a request for {spec.precision}"
            )
        self.load()
        options = session_options(spec)
        sessions = {piece.id: _open(piece, options) for piece in pieces}
        return HostDevice(self.name, pieces, tensors, lambda piece, _: _Binding(piece, sessions[piece.id]))


class _Binding(HostBinding):
    """A piece bound by onnxruntime's ``IOBinding``."""

    def __init__(self, spec: PieceSpec, session: onnxruntime.InferenceSession) -> None:
        self._binding = session.io_binding()
        super().__init__(spec, _engine_call(session, self._binding))

    def read(self, index: int, array: npt.NDArray[Any]) -> None:
        """Bind an input."""
        self._binding.bind_cpu_input(self.spec.inputs[index].name, array)

    def write(self, index: int, array: npt.NDArray[Any]) -> None:
        """Bind an output."""
        name = self.spec.outputs[index].name
        self._binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def read_brought(self, index: int, array: npt.NDArray[Any]) -> None:
        """Bind an input: for one sample with the faster method, with which the engine holds it until the next call."""
        if self.rows == 1:
            self.read(index, array)
        else:
            name = self.spec.inputs[index].name
            self._binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)


def _engine_call(session: onnxruntime.InferenceSession, binding: onnxruntime.IOBinding) -> Callable[[], object]:
    """Return ``session.run_with_iobinding(binding)`` as a function, without the Python wrapper if that is possible.

    The wrapper of version 1.31 first checks for graph capture on WebGPU, which took 3 of the 9 microseconds of a tiny
    graph. The private attributes that it wraps have existed since version 1.0; without them, the wrapper is used.
    """
    inner, bound = getattr(session, "_sess", None), getattr(binding, "_iobinding", None)
    if inner is None or bound is None:
        return partial(session.run_with_iobinding, binding)
    return partial(inner.run_with_iobinding, bound, None)


_global_pool_threads: int | None = None


def session_options(spec: TargetSpec) -> onnxruntime.SessionOptions:
    """Return session options with which the sessions of a bundle do not compete for the cores.

    By default every session has a thread pool that spins, with which a chain of four segments ran 4.5 times slower than
    the uncut model. A private pool therefore does not spin. The global pool is shared by the whole process: once it
    exists, plain ``InferenceSession(path)`` calls fail, so it is created only on request.

    Raises:
        TargetError: the global pool cannot be created, or exists with another number of threads.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    # Without VNNI, 8-bit dot products saturate in 16 bits; with this option they are computed without saturation.
    options.add_session_config_entry("session.x64quantprecision", "1")
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
        except Exception as error:  # the application has created the pool; onnxruntime's exceptions share no base class
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
        # The fallback is disabled, since it prints to stdout and retries with other options.
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
    for specs, found in ((piece.inputs, session.get_inputs()), (piece.outputs, session.get_outputs())):
        if [spec.name for spec in specs] != [own.name for own in found]:
            raise BundleError(
                f"{piece.path} reads or writes {[own.name for own in found]}; the manifest says "
                f"{[spec.name for spec in specs]}"
            )
    return session
