"""What every target has to do: run for those that work here, or for one with ``pytest --target NAME``.

On a bundle whose exact answers numpy knows (``tests/bundles.py``). A target of another package is found by its entry
point like ours.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from dyce_runtime import Configuration, Session, load, open_bundle
from dyce_runtime.bundle.manifest import TensorSpec
from dyce_runtime.bundle.reader import MANIFEST, sha256_of
from dyce_runtime.errors import BundleError, PieceError, TargetError
from dyce_runtime.execution.contracts import Device, TargetSpec
from dyce_runtime.targets import registry
from tests import cascades, choices, sequences
from tests.bundles import CLASSES, NAMED, expected, finish, make_images, near_threshold, on

# Of a target: its logits differ from the exact ones by at most so much of the largest.
TOLERANCE = 1e-3

thresholds = st.floats(0.125, 1, width=32)
configurations = st.fixed_dictionaries({}, optional={"exit3": thresholds, "exit7": thresholds}).map(
    lambda exits: Configuration("drawn", on(**exits))
)
batches = st.builds(make_images, st.integers(1, 9), st.integers(0, 2**32 - 1))
# Fixtures are made once for all examples, which is what is meant.
once = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def assert_close(found: Any, wanted: Any) -> None:
    """Within the tolerance of the largest value."""
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE * float(np.abs(wanted).max()))


@pytest.fixture
def session(target: str, tiny_bundle: Path) -> Iterator[Session]:
    with load(tiny_bundle, target, threads=1) as opened:
        yield opened


@pytest.fixture
def device(session: Session) -> Device:
    return session.device


def seam(device: Device, images: np.ndarray, *pieces: str) -> np.ndarray:
    """What crosses the seam after the second segment."""
    with device.context(len(images)) as context:
        context.set_input("image", images)
        for piece in pieces:
            context.run(piece)
        return context.read("seam_7")[0].copy()


# --- answers ---------------------------------------------------------------------------------------------------------


@once
@given(batches, configurations)
def test_answers_are_those_of_numpy(session: Session, images, configuration):
    assume(not near_threshold(images, configuration))
    session.use(configuration)
    result, answer = session(images), expected(images, configuration)
    np.testing.assert_array_equal(result.exit, answer.exit)
    np.testing.assert_array_equal(result.label, answer.label)
    assert_close(result.logits, answer.logits)
    np.testing.assert_allclose(result.confidence, answer.confidence, rtol=0, atol=TOLERANCE)
    assert (result.logits.dtype, result.label.dtype, result.exit.dtype) == (np.float32, np.int64, np.int64)


@pytest.fixture
def cascade(target: str, cascade_bundle: Path) -> Iterator[Session]:
    with load(cascade_bundle, target, threads=1) as opened:
        yield opened


@once
@given(
    st.fixed_dictionaries({}, optional=dict.fromkeys(("saver0_2", "saver0", "saver1", "exit7"), thresholds)),
    st.builds(cascades.make_inputs, st.integers(1, 9), st.integers(0, 2**32 - 10**6)),
)
def test_savers_run_before_the_base_on_what_has_not_left(cascade: Session, named, inputs):
    configuration = Configuration("drawn", cascades.on(**named))
    assume(not cascades.near_threshold(inputs, configuration))
    cascade.use(configuration)
    result, answer = cascade(inputs), cascades.expected(inputs, configuration)
    np.testing.assert_array_equal(result.exit, answer.exit)
    assert_close(result.logits, answer.logits)
    samples = [{name: images[row] for name, images in inputs.items()} for row in range(len(answer.exit))]
    streamed = list(cascade.stream(samples, batch=4, in_flight=6))
    np.testing.assert_array_equal([int(one.exit[0]) for one in streamed], answer.exit)
    assert_close(np.concatenate([one.logits for one in streamed]), answer.logits)


@pytest.fixture
def sequence(target: str, sequence_bundle: Path) -> Iterator[Session]:
    with load(sequence_bundle, target, threads=1) as opened:
        yield opened


@once
@given(
    sequences.configurations,
    st.builds(cascades.make_inputs, st.integers(1, 9), st.integers(0, 2**32 - 10**6)),
)
def test_heads_that_read_what_others_left_answer_as_the_whole_network(sequence: Session, configuration, inputs):
    assume(not sequences.near_threshold(inputs, configuration))
    sequence.use(configuration)
    result, answer = sequence(inputs), sequences.expected(inputs, configuration)
    np.testing.assert_array_equal(result.exit, answer.exit)
    assert_close(result.logits, answer.logits)
    samples = [{name: images[row] for name, images in inputs.items()} for row in range(len(answer.exit))]
    alone = [sequence({name: image[None] for name, image in sample.items()}) for sample in samples]
    for found in (alone, list(sequence.stream(samples, batch=4, in_flight=6))):
        np.testing.assert_array_equal([int(one.exit[0]) for one in found], answer.exit)
        assert_close(np.concatenate([one.logits for one in found]), answer.logits)


@pytest.mark.parametrize("name", NAMED)
def test_samples_alone_leave_where_they_leave_in_a_batch(session: Session, name: str):
    images = make_images(33)
    session.use(name)
    together, alone = session(images), [session(image[None]) for image in images]
    np.testing.assert_array_equal(together.exit, [int(result.exit[0]) for result in alone])
    assert_close(np.concatenate([result.logits for result in alone]), together.logits)


def test_a_stream_gives_what_calls_give(session: Session):
    images = make_images(40)
    session.use("fast")
    together, streamed = session(images), list(session.stream(iter(images), batch=6, in_flight=11))
    np.testing.assert_array_equal(together.exit, [int(result.exit[0]) for result in streamed])
    assert_close(np.concatenate([result.logits for result in streamed]), together.logits)


def test_results_own_their_memory_and_inputs_stay_as_they_were(session: Session):
    for count in (1, 5):
        first, second = make_images(count, seed=1), make_images(count, seed=2)
        kept = first.copy()
        result = session(first)
        before = result.logits.copy(), result.label.copy(), result.confidence.copy(), result.exit.copy()
        session(second)
        for array, copy in zip((result.logits, result.label, result.confidence, result.exit), before, strict=True):
            np.testing.assert_array_equal(array, copy)
        np.testing.assert_array_equal(first, kept)


def test_the_uncut_model_and_the_chain_agree(session: Session):
    images = make_images(20)
    session.use(Configuration("never", on(exit3=1.0, exit7=1.0)))
    np.testing.assert_array_equal(session(images).label, session.run_uncut(images))


def test_threads_share_a_session(session: Session):
    images, random = make_images(64), Random(3)
    names = [random.choice(list(NAMED)) for _ in range(200)]
    rows = [slice(start := random.randrange(56), start + random.randrange(1, 9)) for _ in names]
    alone = {name: session.plan(name) for name in NAMED}

    def call(name: str, part: slice) -> Any:
        session.use(name)
        return session(images[part])

    with ThreadPoolExecutor(4) as pool:
        for part, result in zip(rows, pool.map(call, names, rows), strict=True):
            answer = expected(images[part], alone[result.configuration.name].configuration)
            np.testing.assert_array_equal(result.exit, answer.exit)
            assert_close(result.logits, answer.logits)


# --- execution contexts ----------------------------------------------------------------------------------------------


def test_a_chain_gives_what_the_uncut_model_gives_whatever_the_batch(device: Device):
    chain = ("segment_00", "segment_01", "segment_02")
    for count in (5, 1, 8, 3, 1, min(70, device.max_rows)):
        images = make_images(count)
        for pieces in (chain, ("full",)):
            with device.context(count) as context:
                context.set_input("image", images)
                for piece in pieces:
                    context.run(piece)
                confidence, logits, label = context.read("confidence", "logits", "label")
                answer = expected(images, Configuration("full", {}))
                assert_close(logits, answer.logits)
                np.testing.assert_array_equal(label, answer.label)
                np.testing.assert_allclose(confidence, answer.confidence, rtol=0, atol=TOLERANCE)


def test_a_context_goes_on_with_the_samples_it_keeps(device: Device):
    whole = seam(device, make_images(5), "segment_00", "segment_01")
    with device.context(5) as context:
        context.set_input("image", make_images(5))
        context.run("segment_00")
        context.keep(np.array([0, 4, 2]), ["seam_3"])
        assert context.rows == 3
        context.run("segment_01")
        assert_close(context.read("seam_7")[0], whole[[0, 4, 2]])


def test_samples_gathered_in_one_call_go_on_in_others(device: Device):
    whole = seam(device, make_images(7), "segment_00", "segment_01")
    with device.context(5) as context:
        context.set_input("image", make_images(7)[:5])
        context.run("segment_00")
        parked = context.gather(np.array([3, 0, 4]), ["seam_3"])
        assert parked.rows == 3
        context.set_input("image", make_images(5, seed=9))  # what was gathered is a copy
        context.run("segment_00")
    with device.context(4) as context:
        context.set_input("image", make_images(7)[5:])
        context.run("segment_00")
        context.append(parked, 0, 2)
        context.run("segment_01")
        assert_close(context.read("seam_7")[0], whole[[5, 6, 3, 0]])
    with device.context(4) as context:
        context.append(parked, 2, 3)
        context.append(parked, 0, 1)
        context.run("segment_01")
        assert_close(context.read("seam_7")[0], whole[[4, 3]])


def test_a_run_can_be_repeated(device: Device):
    whole = seam(device, make_images(3), "segment_00", "segment_01")
    with device.context(3) as context:
        context.set_input("image", make_images(3))
        for piece in ("segment_00", "segment_00", "segment_01", "segment_01"):
            context.run(piece)
            context.wait()
        assert_close(context.read("seam_7")[0], whole)


def test_a_head_leaves_what_later_pieces_read(device: Device):
    with device.context(3) as context:
        context.set_input("image", make_images(3))
        context.run("segment_00")
        before = context.read("seam_3")[0].copy()
        context.run("exit_03_linear")
        np.testing.assert_array_equal(context.read("seam_3")[0], before)


def test_tensors_are_copied_for_all_samples_or_for_some(device: Device):
    with device.context(4) as context:
        context.set_input("image", make_images(4))
        context.run("segment_00")
        context.run("segment_01")
        before = context.read("seam_3")[0].copy()
        after = context.read("seam_7")[0].copy()
        context.copy("seam_7", "seam_3", np.array([0, 3]))
        found = context.read("seam_7")[0]
        np.testing.assert_array_equal(found, np.where(np.array([1, 0, 0, 1])[:, None, None, None], before, after))
        context.copy("seam_7", "seam_3")
        np.testing.assert_array_equal(context.read("seam_7")[0], before)


def test_calls_at_once_keep_apart(device: Device):
    batches = [make_images(3, seed=seed) for seed in range(4)]
    wanted = [seam(device, images, "segment_00", "segment_01") for images in batches]
    with ThreadPoolExecutor(4) as pool:
        turns = [k % 4 for k in range(100)]
        found = list(pool.map(lambda k: seam(device, batches[k], "segment_00", "segment_01"), turns))
    for k, array in zip(turns, found, strict=True):
        assert_close(array, wanted[k])


def test_one_sample_stops_where_it_is_confident(session: Session):
    for plan in map(session.plan, NAMED):
        (stage,) = plan.stages
        for image in make_images(12):
            answer = expected(image[None], plan.configuration)
            with session.device.context(1) as context:
                context.set_input("image", image[None])
                leave, score = context.run_until_exit(stage.steps)
                assert leave is not None
                assert leave.exit == answer.exit[0]
                np.testing.assert_allclose(score, answer.confidence, rtol=0, atol=TOLERANCE)
                logits, label = context.read("logits", "label")
                assert_close(logits, answer.logits)
                assert label.tolist() == answer.label.tolist()


# --- faults ----------------------------------------------------------------------------------------------------------


def test_a_call_that_runs_outlives_its_device(target: str, tiny_bundle: Path):
    session = load(tiny_bundle, target, threads=1)
    with session.device.context(2) as context:
        context.set_input("image", make_images(2))
        session.close()
        context.run("full")
        assert context.read("confidence")[0].shape == (2,)
    with pytest.raises(PieceError, match="closed"):
        session.device.context(2)
    session.close()


@pytest.mark.parametrize("content", [b"", b"not a graph"])
def test_a_damaged_graph_with_the_right_hash_is_named(target: str, bundle_copy: Path, content: bytes):
    file = bundle_copy / "segments/segment_01.onnx"
    file.write_bytes(content)
    manifest = json.loads((bundle_copy / MANIFEST).read_bytes()) | {"digest": ""}
    manifest["files"]["segments/segment_01.onnx"] = sha256_of(file)
    (bundle_copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=f"{file} does not load in "):
        load(bundle_copy, target)


def test_a_graph_with_other_tensors_than_the_manifest_says_is_named(target: str, bundle_copy: Path):
    manifest = open_bundle(bundle_copy).manifest
    seam = TensorSpec("unseen", "float32", ("batch", 4), "activation")
    pieces = tuple(
        msgspec.structs.replace(piece, writes=(*piece.writes, "unseen")) if piece.id == "segment_00" else piece
        for piece in manifest.pieces
    )
    finish(bundle_copy, tensors=(*manifest.tensors, seam), pieces=pieces)
    with pytest.raises((BundleError, TargetError)):
        load(bundle_copy, target)


def test_what_is_compiled_is_there(target: str, tiny_bundle: Path, tmp_path: Path):
    bundle, compile = open_bundle(tiny_bundle), registry.get(target).compile
    for piece in bundle.piece_specs([piece.id for piece in bundle.manifest.pieces]):
        assert compile(piece, TargetSpec(), tmp_path).path.exists()


def test_the_number_of_classes_is_that_of_the_model(session: Session):
    assert session(make_images(2)).logits.shape == (2, CLASSES)


# --- different ways --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def choices_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return choices.make_choices(tmp_path_factory.mktemp("choices") / "choices.dyce")


@pytest.fixture
def choosing(target: str, choices_bundle: Path) -> Iterator[Session]:
    with load(choices_bundle, target, threads=1) as opened:
        yield opened


@once
@given(batches, choices.configurations)
def test_each_sample_takes_its_way_alone_in_a_batch_and_in_a_stream(choosing: Session, images, configuration):
    assume(not choices.near_threshold(images, configuration))
    choosing.use(configuration)
    result, answer = choosing(images), choices.expected(images, configuration)
    np.testing.assert_array_equal(result.exit, answer.exit)
    assert_close(result.logits, answer.logits)
    alone = [choosing(image[None]) for image in images]
    for found in (alone, list(choosing.stream(iter(images), batch=4, in_flight=6))):
        np.testing.assert_array_equal([int(one.exit[0]) for one in found], answer.exit)
        assert_close(np.concatenate([one.logits for one in found]), answer.logits)
