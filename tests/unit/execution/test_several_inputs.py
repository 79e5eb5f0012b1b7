"""A network of two inputs, each with preprocessing of its own: nothing exports one yet, and the runtime runs it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dyce_runtime import Configuration, Session, load, open_bundle
from dyce_runtime.bundle.manifest import Input
from dyce_runtime.errors import RuntimeInputError
from dyce_runtime.program.operations import Feed
from tests import bundles
from tests.bundles import NAMED, Answer, make_bundle, make_images
from tests.reference_interpreter import Interpreter

Inputs = dict[str, NDArray[np.float32]]


def make_two_inputs(path: Path) -> Path:
    """The tiny bundle, whose network computes what it did from the sum of two images."""
    manifest = open_bundle(make_bundle(path)).manifest
    spec = next(spec for spec in manifest.tensors if spec.name == "image")
    second = msgspec.structs.replace(spec, name="second")
    pieces = []
    for piece in manifest.pieces:
        if "image" in piece.reads:
            model = onnx.load(path / piece.file)
            for node in model.graph.node:
                node.input[:] = ["total" if name == "image" else name for name in node.input]
            model.graph.node.insert(0, onnx.helper.make_node("Add", ["image", "second"], ["total"]))
            further = model.graph.input.add()
            further.CopyFrom(model.graph.input[0])
            further.name = "second"
            onnx.save(model, path / piece.file)
            piece = msgspec.structs.replace(piece, reads=("image", "second"))
        pieces.append(piece)
    (network,) = manifest.networks
    way = msgspec.structs.replace(network.inputs[0].preprocessing, mean=(0.25,) * 3)
    bundles.finish(
        path,
        tensors=(*manifest.tensors, second),
        pieces=tuple(pieces),
        networks=(msgspec.structs.replace(network, inputs=(*network.inputs, Input("second", way))),),
        program=(manifest.program[0], Feed("second"), *manifest.program[1:]),
    )
    return path


def make_both(count: int, seed: int) -> Inputs:
    return {"image": make_images(count, seed), "second": make_images(count, seed + 1000) / 2}


def expected(inputs: Inputs, configuration: Configuration) -> Answer:
    return bundles.expected(inputs["image"] + inputs["second"], configuration)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_two_inputs(tmp_path_factory.mktemp("inputs") / "two.dyce")


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def session(bundle: Path, request: pytest.FixtureRequest) -> Iterator[Session]:
    with load(bundle, target=request.param, threads=1) as session:
        yield session


@given(st.sampled_from(sorted(NAMED)), st.integers(1, 40), st.integers(0, 100))
def test_a_call_reads_both(session: Session, name: str, count: int, seed: int):
    inputs = make_both(count, seed)
    session.use(name)
    result, answer = session(inputs), expected(inputs, session.bundle.configuration(name))
    np.testing.assert_array_equal(result.exit, answer.exit)
    np.testing.assert_allclose(result.logits, answer.logits, atol=1e-4)


def test_a_stream_reads_both(session: Session):
    inputs = make_both(30, 3)
    session.use("fast")
    answer = expected(inputs, session.bundle.configuration("fast"))
    samples = ({name: images[row] for name, images in inputs.items()} for row in range(30))
    found = list(session.stream(samples, batch=4))
    assert [int(result.exit[0]) for result in found] == answer.exit.tolist()


def test_the_reference_interpreter_takes_the_same_exits(bundle: Path, session: Session):
    inputs = make_both(50, 5)
    interpreter = Interpreter(bundle)
    for name in NAMED:
        session.use(name)
        exits = msgspec.to_builtins(session.configuration.exits)
        samples = ({name: images[row : row + 1] for name, images in inputs.items()} for row in range(50))
        taken = [interpreter(sample, exits, {})[0] for sample in samples]
        assert session(inputs).exit.tolist() == taken


def test_each_input_has_preprocessing_of_its_own(session: Session):
    picture = np.full((4, 4, 3), 255, np.uint8)
    inputs = session.preprocess([picture])
    np.testing.assert_allclose(inputs["image"], 1.0)
    np.testing.assert_allclose(inputs["second"], 1.5)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (make_images(2), "found ndarray; expected a dictionary with images for image, second"),
        ({"image": make_images(2)}, "found images for image; expected"),
        ({"image": make_images(2), "second": make_images(3)}, "found different numbers of images: 2 for image, 3"),
        ({"image": make_images(2), "second": make_images(2) * 100}, "sample 0 holds"),
    ],
)
def test_what_is_missing_or_does_not_fit_is_refused(session: Session, images: object, message: str):
    with pytest.raises(RuntimeInputError, match=message):
        session(images)  # type: ignore[arg-type]
