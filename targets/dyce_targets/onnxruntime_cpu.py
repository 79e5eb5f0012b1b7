"""ONNX Runtime on a CPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dyce_runtime.contracts import PieceSpec, TargetSpec
from dyce_runtime.errors import BundleError, PieceError, TargetError

if TYPE_CHECKING:
    import onnxruntime

PROVIDER = "CPUExecutionProvider"


class OnnxRuntimeCpu:
    """Runs the ONNX files as they are; a handle is an array."""

    name = "onnxruntime"

    def available(self) -> str | None:
        """None, or that onnxruntime is not installed."""
        if importlib.util.find_spec("onnxruntime") is None:
            return "onnxruntime is not installed; pip install 'dyce-export[cpu]'"
        return None

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
    """Loaded pieces. Calls from several threads are safe."""

    def __init__(self, pieces: Sequence[PieceSpec], spec: TargetSpec) -> None:
        options = session_options(spec)
        self._sessions = {piece.id: _open(piece, options) for piece in pieces}
        self._inputs = {piece.id: [tensor.name for tensor in piece.inputs] for piece in pieces}
        self._outputs = {piece.id: [tensor.name for tensor in piece.outputs] for piece in pieces}

    def prepare(self, max_batch: int) -> None:
        """Nothing to do: ONNX Runtime allocates on demand."""

    def put(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The array itself, made contiguous."""
        return np.ascontiguousarray(array)

    def run(self, piece: str, handles: Sequence[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """Run a piece. Raises PieceError."""
        try:
            feeds = dict(zip(self._inputs[piece], handles, strict=True))
            result: list[npt.NDArray[Any]] = self._sessions[piece].run(self._outputs[piece], feeds)
            return result
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise PieceError(f"piece {piece} failed in onnxruntime: {error}") from error

    def take(self, handle: npt.NDArray[Any], rows: npt.NDArray[np.intp]) -> npt.NDArray[Any]:
        """A copy of the given rows."""
        return handle[rows]

    def fetch(self, handle: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The array itself."""
        return handle

    def close(self) -> None:
        """Drop the sessions."""
        self._sessions.clear()


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
