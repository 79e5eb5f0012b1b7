"""Images in every kind of memory: the same answer as from a plain array, or a refusal, on every target.

Engines keep the address of what they read. Here freed memory is overwritten at once, so that an array which nobody
owned between the moment it was bound and the moment it was read gives other answers, every time.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from dyce_runtime import Session, load
from dyce_runtime.errors import PieceError, RuntimeInputError
from tests.bundles import finish, make_bundle, make_images

# One image is larger than the runtime copies by itself; a batch is smaller than what the allocator maps and unmaps.
EDGE = 80
_PERTURB = -6  # mallopt's M_PERTURB of glibc
Floats = NDArray[np.float32]


@pytest.fixture(scope="module")
def large_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("large") / "large.dyce", edge=EDGE)


@pytest.fixture
def freed_memory_is_overwritten() -> Iterator[None]:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda option, value: 0)
    mallopt(_PERTURB, 0x5A)
    yield
    mallopt(_PERTURB, 0)


@pytest.fixture(params=["tiny", "large"])
def case(
    request: pytest.FixtureRequest,
    target: str,
    tiny_bundle: Path,
    large_bundle: Path,
    freed_memory_is_overwritten: None,
) -> Iterator[tuple[Session, Callable[[int], Floats]]]:
    """A session with all exits on, and images for it."""
    large = request.param == "large"
    with load(large_bundle if large else tiny_bundle, target, threads=1) as session:
        session.use("balanced")
        yield session, lambda count: make_images(count, edge=EDGE) if large else make_images(count)


def _misaligned(images: Floats) -> Floats:
    raw = bytearray(images.nbytes + 1)
    raw[1:] = images.tobytes()
    return np.frombuffer(raw, np.uint8)[1:].view(np.float32).reshape(images.shape)


def _spread(images: Floats) -> Floats:
    wide = np.zeros((2 * len(images), *images.shape[1:-1], 2 * images.shape[-1]), np.float32)
    wide[::2, ..., ::2] = images
    return wide[::2, ..., ::2]


def _mapped(images: Floats, folder: Path) -> Floats:
    np.save(folder / "images.npy", images)
    return np.load(folder / "images.npy", mmap_mode="r")


class Mine(np.ndarray):
    pass


MEMORY: dict[str, Callable[[Floats, Path], Floats]] = {
    "bytes": lambda images, _: np.frombuffer(images.tobytes(), np.float32).reshape(images.shape),
    "a file that is mapped": _mapped,
    "broadcast": lambda images, _: np.broadcast_to(images, (1, *images.shape))[0],
    "misaligned": lambda images, _: _misaligned(images),
    "Fortran order": lambda images, _: np.asfortranarray(images),
    "every second pixel": lambda images, _: _spread(images),
    "negative strides": lambda images, _: np.flip(np.flip(images, -1).copy(), -1),
    "a subclass": lambda images, _: images.view(Mine),
    "masked, nothing hidden": lambda images, _: np.ma.masked_array(images),
}


def test_answers_do_not_depend_on_the_memory_of_the_images(
    case: tuple[Session, Callable[[int], Floats]], tmp_path: Path
) -> None:
    session, images_of = case
    for count in (1, 2, 5):
        images = images_of(count)
        wanted, uncut = session(images), session.run_uncut(images)
        for memory, made in MEMORY.items():
            same = made(images, tmp_path)
            found = session(same)
            np.testing.assert_array_equal(found.logits, wanted.logits, err_msg=memory)
            np.testing.assert_array_equal(found.exit, wanted.exit, err_msg=memory)
            np.testing.assert_array_equal(session.run_uncut(same), uncut, err_msg=memory)
            streamed = list(session.stream(iter(same), batch=2, in_flight=3))
            np.testing.assert_array_equal([int(one.label[0]) for one in streamed], wanted.label, err_msg=memory)


def test_a_context_owns_what_it_reads_until_it_is_given_back(case: tuple[Session, Callable[[int], Floats]]) -> None:
    session, images_of = case
    for count in (1, 5):
        images = images_of(count)
        wanted = session.run_uncut(images)
        with session.device.context(count) as context:
            for kept in (images.copy(), np.frombuffer(images.tobytes(), np.float32).reshape(images.shape)):
                context.set_input("image", kept)
                del kept
                junk = [np.full_like(images, 7) for _ in range(8)]
                context.run("full")
                np.testing.assert_array_equal(context.read("label")[0], wanted)
                del junk


def test_hidden_values_and_another_byte_order_are_refused(case: tuple[Session, Callable[[int], Floats]]) -> None:
    session, images_of = case
    images = images_of(2)
    for wrong in (images.astype(">f4"), np.ma.masked_array(images, images > 0)):
        with pytest.raises(RuntimeInputError, match="expected a float32 array"):
            session(wrong)


def test_values_that_no_network_computes_with_are_refused(case: tuple[Session, Callable[[int], Floats]]) -> None:
    session, images_of = case
    for count, value in product((1, 4), (3e38, -1e13, np.nan, np.inf)):
        images = images_of(count)
        images[-1, 0, 1, 2] = value
        for call in (session, session.run_uncut, lambda batch: list(session.stream(iter(batch)))):
            with pytest.raises(RuntimeInputError, match=r"sample \d holds .*; expected"):
                call(images)


@pytest.fixture
def without_scores(bundle_copy: Path) -> Path:
    """A bundle whose every decision comes of a weight that is NaN."""
    for file in [
        bundle_copy / "segments/segment_02.onnx",
        bundle_copy / "spans/full.onnx",
        *bundle_copy.glob("heads/*"),
    ]:
        model = onnx.load(file)
        for tensor in model.graph.initializer:
            if tensor.name.startswith("linear"):
                weight = numpy_helper.to_array(tensor).copy()
                weight[1, 2] = np.nan
                tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
        onnx.save(model, file)
    finish(bundle_copy)
    return bundle_copy


def test_scores_that_are_not_numbers_are_an_error(target: str, without_scores: Path) -> None:
    images = make_images(4)
    with load(without_scores, target, threads=1) as session:
        for configuration, part in product(("full", "fast"), (images, images[:1])):
            session.use(configuration)
            for call in (session, session.run_uncut, lambda batch: list(session.stream(iter(batch)))):
                with pytest.raises(PieceError, match="not numbers"):
                    call(part)
