"""The steps of an exit sequence network in onnxruntime, one after another, against the whole of it in torch."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from dyce_calibration.heads.sequence import ExitSequence
from dyce_export.savers.sequence_graphs import left_spec, sequence_step
from dyce_runtime.bundle.manifest import ANSWER, TensorSpec
from tests.unit.heads.test_sequence import CLASSES, network

SIZES = (6, 5, 7, 3)
SAVER = (
    TensorSpec("saver0_features", "float32", ("batch", 6)),
    TensorSpec("saver0_logits", "float32", ("batch", CLASSES)),
)
# A feature map, tokens, and two tensors at once.
SEAMS = [
    [TensorSpec("exit_01", "float32", ("batch", 5, 4, 4))],
    [TensorSpec("exit_02", "float32", ("batch", 9, 7))],
    [TensorSpec("exit_03_0", "float32", ("batch", 2, 3, 3)), TensorSpec("exit_03_1", "float32", ("batch", 1))],
]
POOLED = [[[2, 3]], [[1]], [[2, 3], []]]


def run_steps(
    made: ExitSequence, seams: list[list[np.ndarray]], saver: tuple[np.ndarray, np.ndarray]
) -> list[np.ndarray]:
    """Logits of every exit, each step fed with what the steps before it have left."""
    known = dict(zip((spec.name for spec in SAVER), saver, strict=True))
    logits = []
    for index, (specs, arrays, pooled) in enumerate(zip(SEAMS, seams, POOLED, strict=True), start=1):
        model = ir.to_proto(sequence_step(made, index, specs, pooled, SAVER, temperature=2.0))
        onnx.checker.check_model(model, full_check=True)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        known |= {spec.name: array for spec, array in zip(specs, arrays, strict=True)}
        found = session.run(None, {value.name: known[value.name] for value in session.get_inputs()})
        logits.append(found[0])
        outputs = [output.name for output in session.get_outputs()]
        assert outputs == [*ANSWER, *([f"esn_{index}"] if made.layers else [])]
        scaled = np.exp(found[0] / 2) / np.exp(found[0] / 2).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(found[1], scaled.max(axis=1), rtol=1e-5)
        if made.layers:
            known[f"esn_{index}"] = found[3]
            assert found[3].shape[1:] == left_spec(made, index).shape[1:]
    return logits


@pytest.mark.parametrize("type", ["esn0x16", "esn1x16", "esn2x64", "esn3x8"])
@pytest.mark.parametrize("batch", [1, 4])
def test_the_steps_compute_what_the_whole_network_computes(type: str, batch: int):
    made, random = network(type), np.random.default_rng(0)
    seams = [[random.normal(size=(batch, *spec.shape[1:])).astype(np.float32) for spec in specs] for specs in SEAMS]
    saver = tuple(random.normal(size=(batch, size)).astype(np.float32) for size in (6, CLASSES))
    means = [
        np.concatenate([array.mean(tuple(axes)) if axes else array for array, axes in zip(arrays, own, strict=True)], 1)
        for arrays, own in zip(seams, POOLED, strict=True)
    ]
    with torch.inference_mode():
        whole = made([torch.from_numpy(array) for array in (saver[0], *means, saver[1])])
    for found, (expected,) in zip(run_steps(made, seams, saver), whole[1:], strict=True):
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-5, rtol=1e-5)
