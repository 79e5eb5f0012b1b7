"""Lowering to 8 bits: quantisation and dequantisation in the graph, with ranges measured on images."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir

from dyce_export.graph.joining import Network
from dyce_export.sources.quiet import quiet
from dyce_runtime.errors import VerificationError
from dyce_runtime.inputs.images import Inputs, count_of, rows_of

Integers = Literal["int8", "uint8"]

# Images per batch, limited because every activation of the network is kept for all of them.
_BATCH = 8
# Percentile of a tensor's values beyond which they are clipped. With the extremes as limits instead, 1.4 times as many
# confidences of Fashion-MNIST's nine heads crossed 0.9.
_PERCENTILE = 99.999
# A tensor that stays below this contributes nothing. Histograms need a range that floating point can divide.
_LEAST = 1e-30
# Half of the largest range, whose width float32 has to represent.
_MOST = 1e38
_WEIGHTED = ("Conv", "Gemm", "MatMul")
# Quantised too in purely convolutional networks, so that integers flow from one convolution to the next. After a
# normalisation over channels, the sums of a residual stream have outliers and stay in float32.
_BETWEEN = ("Add", "MaxPool")
_CLIPPING = ("Relu", "Clip")


def quantiser(network: Network, inputs: Inputs, to: Integers) -> Callable[[Sequence[str]], ir.Model]:
    """Measure the range of every tensor once; return a function that quantises all but the given pieces.

    Weights become int8 with one scale per output channel. Activations become ``int8`` around zero, which TensorRT
    requires, or ``uint8`` with a zero point, which is faster on CPUs and has one more bit if nothing is negative.

    Args:
        inputs: input name to preprocessed images (N, C, H, W) that resemble those to be classified.

    Raises:
        VerificationError: a tensor of the network is not finite on the images, or too large.
    """
    proto = ir.to_proto(network.model)
    symmetric = to == "int8"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        onnx.save(proto, path)
        with quiet():
            ranges = _measure(path, inputs, symmetric=symmetric)

    def quantise(kept: Sequence[str]) -> ir.Model:
        return _quantised(proto, ranges, to, [name for id in kept for name in network.nodes[id]])

    return quantise


def _measure(path: Path, inputs: Inputs, *, symmetric: bool) -> Any:
    """Measure the range that contains nearly all values of each tensor.

    This takes two passes: onnxruntime's histograms take their bins from the first batch, which fails if a tensor hardly
    varies in it, and need an unbounded number of bins if a later batch exceeds it by far. So extremes are measured
    first.
    """
    from onnxruntime.quantization import CalibrationMethod

    extremes = _calibrator(path, CalibrationMethod.MinMax, symmetric=symmetric)
    extremes.collect_data(_Reader(_batches(inputs)))
    calibrator = _calibrator(path, CalibrationMethod.Percentile, symmetric=symmetric, percentile=_PERCENTILE)
    calibrator.collector = _with_bins(extremes.compute_data(), calibrator)
    for batch in _batches(inputs):
        calibrator.collect_data(_Reader(iter([batch])))
    return calibrator.compute_data()


def _calibrator(path: Path, method: Any, **options: object) -> Any:
    from onnxruntime.quantization.calibrate import create_calibrator

    augmented = str(path.with_name(f"{method.name}.onnx"))
    return create_calibrator(path, augmented_model_path=augmented, calibrate_method=method, extra_options=options)


def _with_bins(extremes: Any, calibrator: Any) -> Any:
    """Create a collector of histograms with bins that cover each tensor, by collecting a zero and its largest value.

    Raises:
        VerificationError: a tensor is not finite, or too large.
    """
    from onnxruntime.quantization.calibrate import HistogramCollector

    collector = HistogramCollector(
        calibrator.method,
        calibrator.symmetric,
        calibrator.num_bins,
        calibrator.num_quantized_bins,
        calibrator.percentile,
        calibrator.scenario,
    )
    for name, found in extremes.items():
        lowest, highest = (float(np.asarray(value).reshape(())) for value in found.range_value)
        if not (lowest > -_MOST and highest < _MOST):  # also true for NaN
            raise VerificationError(
                f"the tensor {name} reaches {lowest:g} to {highest:g} on these pictures; expected less than {_MOST:g}",
                hint="A model whose activations overflow cannot be quantised; the pictures may be prepared wrongly.",
            )
        collector.collect({name: np.array([0, max(-lowest, highest, _LEAST)], np.float32)})
    return collector


def _batches(inputs: Inputs) -> Iterator[Inputs]:
    for start in range(0, count_of(inputs), _BATCH):
        yield rows_of(inputs, slice(start, start + _BATCH))


class _Reader:
    """An iterator of batches with the interface that onnxruntime's calibrators expect."""

    def __init__(self, batches: Iterator[Inputs]) -> None:
        self._batches = batches

    def get_next(self) -> Inputs | None:
        return next(self._batches, None)


def _quantised(proto: onnx.ModelProto, ranges: Any, to: Integers, kept: list[str]) -> ir.Model:
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    types, without = _operators(proto, to)
    options = {
        "ActivationSymmetric": to == "int8",
        "WeightSymmetric": True,
        "QuantizeBias": False,  # TensorRT accepts no 32-bit integer biases, and onnxruntime is as fast without them
        "OpTypesToExcludeOutputQuantization": without,
    }
    activations = {"int8": QuantType.QInt8, "uint8": QuantType.QUInt8}[to]
    quantizer = QDQQuantizer(copy, True, False, QuantType.QInt8, activations, ranges, [], kept, types, options)
    with quiet():
        quantizer.quantize_model()
    quantized = ir.from_proto(onnx.shape_inference.infer_shapes(quantizer.model.model))
    quantized.graph.sort()
    return quantized


def _operators(proto: onnx.ModelProto, to: Integers) -> tuple[list[str], list[str]]:
    """Return the operators to quantise, and those of them whose outputs are quantised only if their readers are.

    TensorRT fuses a convolution with the operations after it only if no quantisation is in between. onnxruntime makes
    an integer convolution only if its output is quantised, which also applies the ReLU if there is a zero point.
    """
    convolutional = "LayerNormalization" not in {node.op_type for node in proto.graph.node}
    types = [*_WEIGHTED, *(_BETWEEN if convolutional else ())]
    if to == "int8":
        return types, types
    if convolutional:
        return [*types, *_CLIPPING], ["Gemm", "MatMul"]
    return types, list(_WEIGHTED)
