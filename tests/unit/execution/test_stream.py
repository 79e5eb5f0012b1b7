"""Streams: the same answers as single calls, in order, with few samples at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dyce_runtime import Configuration, Session
from dyce_runtime.errors import PieceError, RuntimeInputError
from tests.bundles import NAMED, Spy, expected, make_images, near_threshold, on

counts = st.integers(0, 40)


@given(counts, st.integers(1, 9), st.integers(1, 30), st.sampled_from(sorted(NAMED)), st.integers(0, 1000))
def test_a_stream_answers_like_single_calls_in_order(shared_session: Session, count, batch, in_flight, name, seed):
    shared_session.use(name)
    images = make_images(count, seed)
    assume(not near_threshold(images, shared_session.configuration))
    results = list(shared_session.stream(iter(images), batch=batch, in_flight=in_flight))
    answer = expected(images, shared_session.configuration)
    assert [int(result.exit[0]) for result in results] == answer.exit.tolist()
    assert [int(result.label[0]) for result in results] == answer.label.tolist()
    for result, logits in zip(results, answer.logits, strict=True):
        np.testing.assert_array_equal(result.logits, logits[None])
        assert [array.shape for array in (result.label, result.confidence, result.exit)] == [(1,)] * 3


@given(st.integers(1, 6), st.integers(1, 20))
def test_no_more_samples_are_in_flight_than_allowed(shared_session: Session, batch, in_flight):
    shared_session.use("fast")
    taken = 0

    def source() -> Iterator[np.ndarray]:
        nonlocal taken
        for image in make_images(60):
            taken += 1
            yield image

    for yielded, _ in enumerate(shared_session.stream(source(), batch=batch, in_flight=in_flight)):
        assert taken - yielded <= max(batch, in_flight)
    assert taken == 60


def test_a_sample_keeps_the_configuration_that_was_active_when_it_came(shared_session: Session):
    images = make_images(40)
    shared_session.use("full")

    def source() -> Iterator[np.ndarray]:
        for number, image in enumerate(images):
            shared_session.use("fast" if number % 3 else "full")
            yield image

    results = list(shared_session.stream(source(), batch=4))
    # The knob is turned before a sample is handed over.
    assert [result.configuration.name for result in results] == ["fast" if n % 3 else "full" for n in range(40)]
    answers = {name: expected(images, Configuration(name, NAMED[name])) for name in ("fast", "full")}
    for number, result in enumerate(results):
        assert result.exit[0] == answers[result.configuration.name].exit[number]


def test_batches_are_filled_up_at_every_segment(spied: Session, spy: Spy):
    spied.use("fast")
    list(spied.stream(iter(make_images(400)), batch=8, in_flight=128))
    for piece in ("segment_00", "segment_01", "segment_02"):
        sizes = [rows for name, rows in spy.calls if name == piece]
        assert max(sizes) <= 8
        assert np.mean(sizes) > 7, piece


def test_a_sample_that_does_not_fit_ends_the_stream_after_those_before_it(shared_session: Session):
    shared_session.use("fast")
    images = [*make_images(11), np.zeros((3, 4, 5), np.float32), *make_images(3)]
    stream = shared_session.stream(images, batch=4)
    found = [int(next(stream).exit[0]) for _ in range(11)]
    assert found == expected(make_images(11), shared_session.configuration).exit.tolist()
    with pytest.raises(RuntimeInputError, match=r"found float32 of shape \(1, 3, 4, 5\)"):
        next(stream)


def test_an_error_of_the_source_comes_through_after_the_samples_before_it(shared_session: Session):
    def source() -> Iterator[np.ndarray]:
        yield from make_images(5)
        raise OSError("the camera is gone")

    stream = shared_session.stream(source(), batch=2)
    assert len([next(stream) for _ in range(5)]) == 5
    with pytest.raises(OSError, match="the camera is gone"):
        next(stream)


def test_a_piece_that_fails_ends_the_stream_and_the_session_stays_usable(spied: Session, spy: Spy):
    spied.use("fast")

    def fail(piece: str) -> None:
        if piece == "segment_01":
            raise PieceError(f"piece {piece} failed: out of memory")

    spy.before = fail
    with pytest.raises(PieceError, match="segment_01"):
        list(spied.stream(iter(make_images(20)), batch=4))
    spy.before = lambda piece: None
    assert len(list(spied.stream(iter(make_images(20)), batch=4))) == 20


def test_a_stream_that_is_left_gives_its_buffers_back(shared_session: Session):
    shared_session.use(Configuration("late", on(exit3=0.5, exit7=1.0)))
    for _ in range(3):
        stream = shared_session.stream(iter(make_images(30)), batch=4)
        next(stream)
        stream.close()
    assert len(list(shared_session.stream(iter(make_images(30)), batch=4))) == 30


@pytest.mark.parametrize(
    "wrong", [{"batch": 0}, {"in_flight": 0}, {"batch": 10**6}, {"batch": None}, {"in_flight": 1.5}]
)
def test_impossible_sizes_are_refused(shared_session: Session, wrong):
    with pytest.raises(RuntimeInputError, match="expected at least 1"):
        shared_session.stream([], **wrong)
