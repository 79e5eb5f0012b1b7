"""What a bundle says of itself is compared with what an engine computes, once: hashes may have been made anew."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from dyce_runtime import load, open_bundle
from dyce_runtime.errors import BundleError, TargetError
from dyce_runtime.targets import trial
from tests.bundles import finish, make_images, with_vectors


@pytest.fixture
def checked(bundle_copy: Path, own_cache: Path) -> Path:
    """A bundle with test vectors that this machine has never seen."""
    return with_vectors(bundle_copy)


def change_weights(file: Path, factor: float) -> None:
    model = onnx.load(file)
    for tensor in model.graph.initializer:
        if tensor.name.startswith(("conv", "linear")):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), tensor.name))
    onnx.save(model, file)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("segments/segment_00.onnx", "its logits are"),
        ("segments/segment_02.onnx", "its logits are"),
        ("heads/exit_03_linear.onnx", "take another exit|head linear at exit 3 is"),
        ("heads/exit_07_linear.onnx", "take another exit|head linear at exit 7 is"),
        ("spans/span_00_01.onnx", "span span_00_01 is"),
        ("spans/full.onnx", "span full is"),
    ],
)
def test_another_piece_of_the_same_shape_is_found_whatever_the_hashes_say(checked: Path, file: str, message: str):
    change_weights(checked / file, 1.25)
    finish(checked)
    open_bundle(checked)
    with pytest.raises(TargetError, match=f"onnxruntime does not compute what .* says: .*({message})") as caught:
        load(checked, "onnxruntime", threads=1)
    assert "check=False" in caught.value.hint


def test_heads_that_were_exchanged_are_found(checked: Path):
    one, other = (checked / f"heads/exit_{point}_linear.onnx" for point in ("03", "07"))
    for source, place in ((one, other), (other, one)):
        model = onnx.load(source)
        seam = "seam_7" if place is other else "seam_3"
        before = model.graph.input[0].name
        model.graph.input[0].name = seam
        for node in model.graph.node:
            node.input[:] = [seam if name == before else name for name in node.input]
        onnx.save(model, place.with_suffix(".new"))
    for place in (one, other):
        shutil.move(place.with_suffix(".new"), place)
    finish(checked)
    with pytest.raises(TargetError, match="does not compute what"):
        load(checked, "onnxruntime", threads=1)


def test_it_is_done_once_for_an_engine(checked: Path, monkeypatch: pytest.MonkeyPatch):
    done = []
    monkeypatch.setattr(trial, "check", lambda session: done.append(session.target.name))
    for _ in range(3):
        load(checked, "onnxruntime", threads=1).close()
    load(checked, "openvino", threads=1).close()
    assert done == ["onnxruntime", "openvino"]
    finish(checked, producer={"dyce-export": "another"})
    load(checked, "onnxruntime", threads=1).close()
    assert len(done) == 3, "another manifest is another bundle"


def test_a_check_that_failed_is_not_remembered(checked: Path):
    change_weights(checked / "segments/segment_00.onnx", 1.25)
    finish(checked)
    for _ in range(2):
        with pytest.raises(TargetError):
            load(checked, "onnxruntime", threads=1)


def test_what_was_skipped_on_request_is_seen(checked: Path):
    file = checked / "segments/segment_00.onnx"
    change_weights(file, 1.25)
    with pytest.raises(BundleError, match="was changed"):
        load(checked, "onnxruntime", threads=1)
    with load(checked, "onnxruntime", threads=1, check=False) as session:
        assert ", unchecked>" in repr(session)
        assert session(make_images(2)).label.shape == (2,)


def test_a_cache_that_cannot_be_written_costs_a_check(checked: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch):
    own_cache.rmdir()
    own_cache.touch()
    done = []
    monkeypatch.setattr(trial, "check", lambda session: done.append(1))
    for _ in range(2):
        load(checked, "onnxruntime", threads=1).close()
    assert len(done) == 2
