"""A cascade that computes something else than its models, or routes elsewhere, is found out."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from dyce_export.savers.fitting import check_parts
from dyce_runtime import open_bundle
from dyce_runtime.bundle.reader import Bundle
from dyce_runtime.bundle.test_vectors import read_vectors
from dyce_runtime.errors import VerificationError
from tests.cascades import ORDER

ORDERS = [ORDER, ORDER, None]


@pytest.fixture
def parts(cascade_bundle: Path) -> list[Bundle]:
    return [open_bundle(cascade_bundle.parent / f"{name}.dyce") for name in ("small", "second", "base")]


@pytest.fixture
def cascade(cascade_bundle: Path, tmp_path: Path) -> Bundle:
    """A copy to damage."""
    found = open_bundle(cascade_bundle)
    return Bundle(shutil.copytree(cascade_bundle, tmp_path / "b.dyce"), found.manifest, found.configurations)


def test_what_was_put_together_right_passes(cascade: Bundle, parts: list[Bundle]):
    check_parts(cascade, parts, ORDERS, read_vectors(cascade))


@pytest.mark.parametrize(
    ("piece", "weight", "exit"),
    [
        ("saver0_segment_01", "small_linear1", "saver0"),
        ("saver0_exit_02_linear", "small_linear0", "saver0.2"),
        ("saver1_segment_00", "second_linear", "saver1"),
        ("segment_02", "conv2", "final"),
    ],
)
def test_one_weight_that_differs_is_found(cascade: Bundle, parts: list[Bundle], piece: str, weight: str, exit: str):
    file = cascade.file(cascade.manifest.piece(piece).file)
    model = onnx.load(file)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == weight)
    array = numpy_helper.to_array(tensor).copy()
    array.flat[0] += 0.25
    tensor.CopyFrom(numpy_helper.from_array(array, weight))
    onnx.save(model, file)
    with pytest.raises(VerificationError, match=f"exit {exit} gives other results"):
        check_parts(cascade, parts, ORDERS, read_vectors(cascade))


def test_classes_in_another_order_are_found(cascade: Bundle, parts: list[Bundle]):
    with pytest.raises(VerificationError, match=r"exit saver0\.2 gives other results"):
        check_parts(cascade, parts, [None, ORDER, None], read_vectors(cascade))


def test_a_sample_that_leaves_elsewhere_is_found(cascade: Bundle, parts: list[Bundle], monkeypatch: pytest.MonkeyPatch):
    def forgetful(session, images):
        result = routed(session, images)
        result.exit[:] = np.where(result.exit == 0, 1, 0)
        return result

    from dyce_runtime.execution.session import Session

    routed = Session.__call__
    monkeypatch.setattr(Session, "__call__", forgetful)
    with pytest.raises(VerificationError, match="a sample takes exit"):
        check_parts(cascade, parts, ORDERS, read_vectors(cascade))
