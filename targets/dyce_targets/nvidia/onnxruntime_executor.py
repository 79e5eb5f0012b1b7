"""The executor that runs ONNX files in onnxruntime, on one of its providers for GPUs.

Activations stay on the device: inputs and outputs are bound to device memory, and all work is enqueued on the stream of
the executor. The provider for CUDA was tested on an H100, those for TensorRT and TensorRT-RTX never were; the test
suite uses a double of the driver, with which onnxruntime's CPU provider computes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dyce_runtime.errors import BundleError, TargetError
from dyce_runtime.execution.contracts import PieceSpec
from dyce_targets.nvidia.cuda import CudaStream

if TYPE_CHECKING:
    import onnxruntime

log = logging.getLogger("dyce_targets")


@dataclass(frozen=True)
class Provider:
    """An execution provider of onnxruntime.

    Attributes:
        name: onnxruntime's name of the provider.
        device: onnxruntime's name of the device that holds its tensors.
        stream_option: the option that sets the CUDA stream; empty if there is none.
        graph_option: the option that makes it capture CUDA graphs; empty if there is none.
        options: further options.
    """

    name: str
    device: str = "cuda"
    stream_option: str = "user_compute_stream"
    graph_option: str = "enable_cuda_graph"
    options: Mapping[str, str] = field(default_factory=dict)


class _Run(NamedTuple):
    """A piece that is bound to device memory, for a number of samples."""

    piece: str
    session: onnxruntime.InferenceSession
    binding: onnxruntime.IOBinding
    options: onnxruntime.RunOptions


class OnnxRuntimeExecutor(CudaStream):
    """See :class:`dyce_targets.nvidia.executor.Executor`. A graph is a list of calls, which the provider captures.

    Args:
        target: name of the target, for messages.
        provider: the execution provider.
        pieces: the pieces.
    """

    def __init__(self, target: str, provider: Provider, pieces: Sequence[PieceSpec]) -> None:
        super().__init__(target)
        self._provider = provider
        self._pieces = {piece.id: piece for piece in pieces}
        self._sessions = {piece.id: self._open(piece) for piece in pieces}
        self._recording: list[_Run] = []
        self._graphs = 0

    def capture(self, work: Callable[[], None]) -> list[_Run]:
        """Record the calls of ``work`` and run them twice: the first run allocates, and the second is captured."""
        self._recording = []
        work()
        runs = self._recording
        for _ in range(2):
            self.launch(runs)
            self.wait()
        return runs

    def launch(self, graph: list[_Run]) -> None:
        """Run recorded calls, asynchronously if the provider supports it. Raises TargetError."""
        for run in graph:
            try:
                run.session.run_with_iobinding(run.binding, run.options)
            except Exception as error:  # onnxruntime's exceptions share no base class
                raise TargetError(f"{self._target}: piece {run.piece} does not run: {error}") from error

    def enqueue(self, piece: str, rows: int, addresses: Mapping[str, int]) -> None:
        """Bind a piece and record its call, with a CUDA graph of its own."""
        import onnxruntime as ort

        spec, session = self._pieces[piece], self._sessions[piece]
        binding = session.io_binding()
        for tensors, bind in ((spec.inputs, binding.bind_input), (spec.outputs, binding.bind_output)):
            for tensor in tensors:
                shape = (rows, *map(int, tensor.shape[1:]))
                bind(tensor.name, self._provider.device, 0, np.dtype(tensor.dtype), shape, addresses[tensor.name])
        options = ort.RunOptions()
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._graphs += 1
        options.add_run_config_entry("gpu_graph_id", str(self._graphs))
        self._recording.append(_Run(piece, session, binding, options))

    def close(self) -> None:
        """Free the sessions, then memory and the stream."""
        self.wait()
        self._recording = []
        self._sessions.clear()
        super().close()

    def _open(self, piece: PieceSpec) -> onnxruntime.InferenceSession:
        """Open a piece, with CUDA graphs if the provider supports them for it. Raises TargetError or BundleError."""
        provider, options = self._provider, dict(self._provider.options)
        if provider.stream_option:
            options[provider.stream_option] = str(int(self.stream))
        if not provider.graph_option:
            return self._session(piece, options)
        try:
            return self._session(piece, {**options, provider.graph_option: "1"})
        except BundleError as error:
            log.info("%s: %s runs without CUDA graphs: %s", self._target, piece.id, error.message)
            return self._session(piece, options)

    def _session(self, piece: PieceSpec, options: dict[str, str]) -> onnxruntime.InferenceSession:
        import onnxruntime as ort

        settings = ort.SessionOptions()
        settings.log_severity_level = 3
        try:
            session = ort.InferenceSession(
                str(piece.path), settings, providers=[(self._provider.name, options)], enable_fallback=0
            )
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise BundleError(f"{piece.path} does not load in onnxruntime {ort.__version__}: {error}") from error
        found = session.get_providers()[0]
        if found != self._provider.name:
            raise TargetError(
                f"{self._target}: onnxruntime fell back to {found}; expected {self._provider.name}",
                hint="Its libraries do not load: versions of CUDA, cuDNN or TensorRT that do not fit onnxruntime-gpu.",
            )
        return session
