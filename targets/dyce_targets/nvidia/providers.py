"""The targets that run onnxruntime's providers for GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from dyce_runtime.errors import TargetError
from dyce_runtime.execution.contracts import DEFAULT_MAX_BATCH, Artefact, Device, PieceSpec, TargetSpec
from dyce_runtime.execution.memory import TensorLife
from dyce_targets import installation
from dyce_targets.nvidia import cuda
from dyce_targets.nvidia.device import GpuDevice
from dyce_targets.nvidia.onnxruntime_executor import OnnxRuntimeExecutor, Provider


class _OnnxRuntimeGpu:
    """Base class of these targets: they read the ONNX files, and use no spans, like all targets on GPUs."""

    name: ClassVar[str]
    provider: ClassVar[Provider]
    install: ClassVar[str] = "pip install 'dyce-export[gpu]', in place of onnxruntime"
    spans = False
    engines = False

    def installed(self) -> str | None:
        """Return None, or a message that onnxruntime or a GPU's driver is missing, without importing onnxruntime."""
        return installation.missing("onnxruntime", self.install) or cuda.driver_missing()

    def available(self) -> str | None:
        """Return None, or a message that onnxruntime, this provider or a GPU is missing."""
        return self.compiles() or cuda.missing()

    def version(self) -> str:
        """Return the version of onnxruntime."""
        return installation.version_of("onnxruntime")

    def compiles(self) -> str | None:
        """Return None, or a message that the provider is not installed."""
        try:
            ort = installation.load("onnxruntime", "InferenceSession", self.install)
        except TargetError as error:
            return error.message
        if self.provider.name not in ort.get_available_providers():
            return f"this onnxruntime has no {self.provider.name}; {self.install}"
        return None

    def best_batch(self, spec: TargetSpec, macs: int) -> int:
        """Return the batch size that the buffers are allocated for."""
        return spec.max_batch or DEFAULT_MAX_BATCH

    def compile(self, piece: PieceSpec, spec: TargetSpec, folder: Path) -> Artefact:
        """Return the ONNX file itself."""
        return Artefact(piece.path, built=False)

    def open(self, pieces: Sequence[PieceSpec], tensors: Sequence[TensorLife], spec: TargetSpec) -> Device:
        """Load the pieces, without any fallback to the CPU.

        Raises:
            TargetError: the provider cannot be used, or the device is out of memory.
            BundleError: a piece does not load.
        """
        reason = self.available()
        if reason:
            raise TargetError(f"{self.name}: {reason}")
        executor = OnnxRuntimeExecutor(self.name, self.provider, pieces)
        return GpuDevice(self.name, pieces, tensors, executor, spec.max_batch or DEFAULT_MAX_BATCH)


class OnnxRuntimeCuda(_OnnxRuntimeGpu):
    """onnxruntime's provider for CUDA, without TensorFloat-32: see :func:`dyce_targets.nvidia.builder.build`."""

    name = "onnxruntime-cuda"
    provider = Provider("CUDAExecutionProvider", options={"use_tf32": "0"})


class OnnxRuntimeTensorRt(_OnnxRuntimeGpu):
    """onnxruntime's provider for TensorRT, which builds engines when a bundle is loaded."""

    name = "onnxruntime-tensorrt"
    provider = Provider("TensorrtExecutionProvider", graph_option="trt_cuda_graph_enable")


class OnnxRuntimeRtx(_OnnxRuntimeGpu):
    """onnxruntime's provider for TensorRT-RTX."""

    name = "onnxruntime-rtx"
    provider = Provider("NvTensorRTRTXExecutionProvider")
    install = "it comes as a plugin of onnxruntime"
