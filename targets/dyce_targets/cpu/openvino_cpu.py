"""The target ``openvino``: OpenVINO on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from threading import Lock
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from dyce_runtime.cpu_features import byte_sums_saturate
from dyce_runtime.errors import BundleError, TargetError
from dyce_runtime.execution.contracts import PieceSpec, TargetSpec
from dyce_runtime.execution.memory import TensorLife
from dyce_targets import installation
from dyce_targets.cpu.host_context import HostBinding, HostDevice
from dyce_targets.cpu.processors import CpuTarget

if TYPE_CHECKING:
    import openvino

DEVICE = "CPU"
# OpenVINO's names of the precisions.
_PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


class OpenVinoCpu(CpuTarget):
    """OpenVINO's CPU plugin, which compiles the ONNX files when they are opened."""

    name = "openvino"
    extra = "openvino"

    def load(self) -> ModuleType:
        """Import openvino. Raises TargetError if it is not installed or broken."""
        return installation.load("openvino", "Core", self.install)

    def _open(self, pieces: Sequence[PieceSpec], tensors: Sequence[TensorLife], spec: TargetSpec) -> HostDevice:
        core, options = self.load().Core(), _options(spec)
        if spec.precision == "bfloat16" and "BF16" not in core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES"):
            raise TargetError(
                f"{self.name}: this processor does not compute in bfloat16",
                hint="Use the bundle in float32, which it lies in, or add uint8 to it.",
            )
        models = {piece.id: _Model(core, piece, options) for piece in pieces}
        return HostDevice(
            self.name, pieces, tensors, lambda piece, capacity: _Binding(piece, models[piece.id].request(capacity))
        )


class _Model:
    """A piece, compiled for one sample when it is opened, and for any number of samples on first use.

    With the latter, one sample takes 3 % (ConvNeXt-atto) to 15 % (a small network) longer.
    """

    def __init__(self, core: openvino.Core, piece: PieceSpec, options: dict[str, Any]) -> None:
        self._core, self._piece, self._options = core, piece, options
        self._lock = Lock()
        self._any: openvino.CompiledModel | None = None
        one = self._read()
        for specs, ports in ((piece.inputs, one.inputs), (piece.outputs, one.outputs)):
            if [spec.name for spec in specs] != [port.any_name for port in ports]:
                raise BundleError(
                    f"{piece.path} reads or writes {[port.any_name for port in ports]}; the manifest says "
                    f"{[spec.name for spec in specs]}"
                )
        one.reshape({tensor.name: [1, *map(int, tensor.shape[1:])] for tensor in piece.inputs})
        self._one = self._compile(one)

    def request(self, capacity: int) -> openvino.InferRequest:
        """Return a new request for at most ``capacity`` samples."""
        if capacity == 1:
            return self._one.create_infer_request()
        with self._lock:
            self._any = self._any or self._compile(self._read())
        return self._any.create_infer_request()

    def _read(self) -> openvino.Model:
        try:
            return self._core.read_model(self._piece.path)
        except RuntimeError as error:
            raise self._broken(error) from error

    def _compile(self, model: openvino.Model) -> openvino.CompiledModel:
        try:
            return self._core.compile_model(model, DEVICE, self._options)
        except RuntimeError as error:
            raise self._broken(error) from error

    def _broken(self, error: RuntimeError) -> BundleError:
        import openvino

        return BundleError(f"{self._piece.path} does not load in openvino {openvino.__version__}: {error}")


class _Binding(HostBinding):
    """A piece bound by OpenVINO's ``InferRequest``."""

    def __init__(self, spec: PieceSpec, request: openvino.InferRequest) -> None:
        import openvino

        self._request, self._tensor = request, openvino.Tensor
        # The inherited method uses the tensors that are bound. The wrapper that overrides it took 3 of 8 microseconds.
        infer = super(openvino.InferRequest, request).infer  # type: ignore[misc]  # openvino ships no types
        super().__init__(spec, partial(infer, {}, share_outputs=True, decode_strings=False))

    def read(self, index: int, array: npt.NDArray[Any]) -> None:
        """Bind an input."""
        self._request.set_input_tensor(index, self._tensor(array, shared_memory=True))

    def write(self, index: int, array: npt.NDArray[Any]) -> None:
        """Bind an output."""
        self._request.set_output_tensor(index, self._tensor(array, shared_memory=True))

    def read_brought(self, index: int, array: npt.NDArray[Any]) -> None:
        """Bind an input."""
        self.read(index, array)


def _options(spec: TargetSpec) -> dict[str, Any]:
    """Return OpenVINO's options. Without the precision hint, it would compute in bfloat16 if the processor can."""
    options: dict[str, Any] = {
        "PERFORMANCE_HINT": spec.mode.upper(),
        "INFERENCE_PRECISION_HINT": _PRECISIONS[spec.precision],
    }
    if byte_sums_saturate():
        options["LP_TRANSFORMS_MODE"] = "NO"  # computes graphs of 8-bit integers in float32
    if spec.threads is not None:
        options["INFERENCE_NUM_THREADS"] = spec.threads
    return options
