from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from types import FrameType

import msgspec
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import dyce_runtime.execution.session
from dyce_runtime import Configuration, Session, load, open_bundle
from dyce_runtime.bundle.configuration import Configurations, Entry, Figures
from dyce_runtime.bundle.measured import Tuning, write_tuning
from dyce_runtime.bundle.reader import write_configurations
from dyce_runtime.errors import ConfigurationError, PieceError, RuntimeInputError
from tests.bundles import CLASSES, NAMED, Spy, all_heads, expected, make_images, near_threshold, on

thresholds = st.floats(0.125, 1, width=32)
configurations = st.fixed_dictionaries({}, optional={"exit3": thresholds, "exit7": thresholds}).map(
    lambda exits: Configuration("drawn", on(**exits))
)
batches = st.builds(make_images, st.integers(1, 9), st.integers(0, 2**32 - 1))


# --- what a call answers ---------------------------------------------------------------------------------------------


@given(batches, configurations)
def test_a_call_answers_like_numpy_in_the_order_of_its_input(shared_session: Session, images, configuration):
    assume(not near_threshold(images, configuration))
    shared_session.use(configuration)
    result, answer = shared_session(images), expected(images, configuration)
    np.testing.assert_array_equal(result.exit, answer.exit)
    np.testing.assert_array_equal(result.label, answer.label)
    np.testing.assert_array_equal(result.logits, answer.logits)
    np.testing.assert_allclose(result.confidence, answer.confidence, rtol=0, atol=1e-6)
    assert result.configuration == configuration


@given(batches, configurations)
def test_a_sample_leaves_where_it_would_leave_alone(shared_session: Session, images, configuration):
    assume(not near_threshold(images, configuration))
    shared_session.use(configuration)
    alone = [int(shared_session(image[None]).exit[0]) for image in images]
    assert shared_session(images).exit.tolist() == alone


@pytest.mark.parametrize("name", NAMED)
def test_the_named_configurations_answer_like_numpy(shared_session: Session, name):
    images = make_images(200)
    shared_session.use(name)
    result = shared_session(images)
    np.testing.assert_array_equal(result.exit, expected(images, shared_session.configuration).exit)
    if name == "fast":
        assert set(result.exit) == {0, 1, 2}, "the test bundle lets samples leave everywhere"


def test_the_uncut_model_answers_like_full(shared_session: Session):
    images = make_images(20)
    shared_session.use("full")
    np.testing.assert_array_equal(shared_session.run_uncut(images), shared_session(images).label)


def test_a_result_has_the_promised_shapes_and_types(shared_session: Session):
    shared_session.use("fast")
    result = shared_session(make_images(6))
    shapes = [(array.shape, array.dtype) for array in (result.logits, result.label, result.confidence, result.exit)]
    assert shapes == [((6, CLASSES), np.float32), ((6,), np.int64), ((6,), np.float32), ((6,), np.int64)]


@pytest.mark.parametrize("name", NAMED)
def test_a_result_owns_its_memory(shared_session: Session, name):
    shared_session.use(name)
    images = make_images(8)
    result = shared_session(images)
    kept = [array.copy() for array in (result.logits, result.label, result.confidence, result.exit)]
    images[:] = 7
    shared_session(make_images(8, seed=1))
    for array, copy in zip((result.logits, result.label, result.confidence, result.exit), kept, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_a_call_leaves_its_input_alone(shared_session: Session):
    images = make_images(8)
    images.flags.writeable = False
    shared_session.use("balanced")
    shared_session(images)
    np.testing.assert_array_equal(images, make_images(8))


def test_the_memory_layout_of_the_input_does_not_matter(shared_session: Session):
    images = make_images(8)
    shared_session.use("fast")
    strided = np.asfortranarray(images)
    np.testing.assert_array_equal(shared_session(strided).logits, shared_session(images).logits)


def test_preprocessed_pictures_are_what_a_call_takes(shared_session: Session):
    picture = np.random.default_rng(0).integers(0, 256, (9, 6, 3), dtype=np.uint8)
    images = shared_session.preprocess([picture, picture])
    assert shared_session(images).label.shape == (2,)


# --- routing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("exit", "index"), [("exit3", 0), ("exit7", 1)])
def test_a_sample_leaves_strictly_above_the_threshold(shared_session: Session, exit, index):
    for image in make_images(10)[:, None]:
        shared_session.use(Configuration("all leave", on(**{exit: 0.0})))
        confidence = shared_session(image).confidence[0]
        shared_session.use(Configuration("equal", on(**{exit: float(confidence)})))
        assert shared_session(image).exit[0] == 2
        shared_session.use(Configuration("below", on(**{exit: float(np.nextafter(confidence, np.float32(0)))})))
        assert shared_session(image).exit[0] == index


def test_a_threshold_of_one_lets_nobody_leave(shared_session: Session):
    sure = np.clip(make_images(2000) * 5, -10, 10)
    assert (all_heads(sure)[1] == 1).any(), "certainty rounds to one in float32"
    shared_session.use(Configuration("one", on(exit3=1.0, exit7=1.0)))
    assert (shared_session(sure).exit == 2).all()


def test_only_samples_that_have_not_left_are_computed_further(spied: Session, spy: Spy):
    images = make_images(40)
    spied.use("fast")
    left = np.bincount(spied(images).exit, minlength=3)
    assert left.all()
    second, third = 40 - left[0], left[2]
    assert spy.calls == [
        ("segment_00", 40),
        ("exit_03_linear", 40),
        ("segment_01", second),
        ("exit_07_linear", second),
        ("segment_02", third),
    ]


def test_nothing_runs_behind_the_exit_that_took_the_last_sample(spied: Session, spy: Spy):
    spied.use(Configuration("early", on(exit3=0.0, exit7=0.0)))
    spied(make_images(5))
    assert spy.calls == [("segment_00", 5), ("exit_03_linear", 5)]


def test_an_exit_that_is_off_runs_no_head(spied: Session, spy: Spy):
    spied.use(Configuration("late", on(exit7=1.0)))
    spied(make_images(5))
    assert spy.calls == [("span_00_01", 5), ("exit_07_linear", 5), ("segment_02", 5)]


def test_full_is_the_uncut_model_in_one_call(spied: Session, spy: Spy):
    spied.use("full")
    spied(make_images(5))
    assert spy.calls == [("full", 5)]


# --- the knob --------------------------------------------------------------------------------------------------------


def test_a_session_starts_balanced_if_the_heads_are_trained(tiny_bundle: Path, untrained_bundle: Path):
    with load(tiny_bundle) as trained, load(untrained_bundle) as untrained:
        assert trained.configuration.name == "balanced"
        assert untrained.configuration.name == "full"
        np.testing.assert_array_equal(untrained(make_images(5)).exit, 2)


def test_untrained_heads_are_refused_unless_allowed(untrained_bundle: Path):
    with load(untrained_bundle) as session:
        with pytest.raises(ConfigurationError, match="'fast' uses heads that were never trained") as caught:
            session.use("fast")
        assert "allow_untrained" in caught.value.hint
        assert session.configuration.name == "full"
    with load(untrained_bundle, allow_untrained=True) as session:
        session.use("fast")
        assert set(session(make_images(40)).exit) == {0, 1, 2}


def test_an_unknown_configuration_is_refused_with_the_known_ones(shared_session: Session):
    shared_session.use("fast")
    with pytest.raises(ConfigurationError, match=r"no configuration 'fats'.*full, accurate, balanced, fast"):
        shared_session.use("fats")
    assert shared_session.configuration.name == "fast"


def test_a_configuration_of_another_bundle_is_refused(shared_session: Session):
    shared_session.use("fast")
    with pytest.raises(ConfigurationError, match="exit '12'; this bundle has the exits 3, 7"):
        shared_session.use(Configuration("foreign", on(exit12=0.5)))
    assert shared_session.configuration.name == "fast"


def test_turning_the_knob_from_another_thread_never_tears_a_result(shared_session: Session):
    images = make_images(40)
    random = Random(0)
    with ThreadPoolExecutor(1) as other_thread:

        def turn_the_knob(frame: FrameType, event: str, argument: object):
            """Before every line that the session executes."""
            if frame.f_code.co_filename == dyce_runtime.execution.session.__file__:
                other_thread.submit(shared_session.use, random.choice(list(NAMED))).result()
                return turn_the_knob
            return None

        results, before = [], sys.gettrace()
        for _ in range(20):
            sys.settrace(turn_the_knob)
            try:
                results.append(shared_session(images))
            finally:
                sys.settrace(before)
    for result in results:
        np.testing.assert_array_equal(result.exit, expected(images, result.configuration).exit)
    assert {result.configuration.name for result in results} == set(NAMED)


def test_a_turn_of_the_knob_counts_from_the_next_call(spied: Session, spy: Spy):
    spied.use("fast")
    spy.before = lambda piece: spied.use("full")
    assert [spied(make_images(5)).configuration.name for _ in range(2)] == ["fast", "full"]


def test_several_threads_may_call_one_session(shared_session: Session):
    shared_session.use("fast")
    batches = [make_images(9, seed) for seed in range(40)]
    with ThreadPoolExecutor(4) as pool:
        for images, result in zip(batches, pool.map(shared_session, batches), strict=True):
            np.testing.assert_array_equal(result.logits, expected(images, result.configuration).logits)


# --- what is refused -------------------------------------------------------------------------------------------------


def spoilt(value: float):
    images = make_images(4)
    images[2, 0, 1, 1] = value
    return images


@pytest.mark.parametrize(
    ("images", "found"),
    [
        (make_images(1)[0], r"found float32 of shape \(3, 4, 4\)"),
        (make_images(1)[None], r"found float32 of shape \(1, 1, 3, 4, 4\)"),
        (np.array(1, np.float32), r"found float32 of shape \(\)"),
        (make_images(2).transpose(0, 2, 3, 1), r"found float32 of shape \(2, 4, 4, 3\)"),
        (make_images(2)[..., :3], r"found float32 of shape \(2, 3, 4, 3\)"),
        (make_images(2).astype(np.float64), r"found float64 of shape \(2, 3, 4, 4\)"),
        (make_images(2).astype(np.float16), "found float16"),
        (make_images(2).astype(np.uint8), "found uint8"),
        (make_images(2).astype(">f4"), "found >f4"),
        (make_images(2)[:0], "found an empty batch"),
        (make_images(2).tolist(), "found list"),
        (None, "found NoneType"),
        ("picture.jpg", "found str"),
        (spoilt(np.nan), "sample 2 holds NaN or infinity"),
        (spoilt(np.inf), "sample 2 holds NaN or infinity"),
        (spoilt(-np.inf), "sample 2 holds NaN or infinity"),
        (spoilt(11), "sample 2 holds 11, and the preprocessing of this bundle makes numbers from -1 to 1"),
        (spoilt(-11), "sample 2 holds -11, and"),
        (np.round(make_images(4) * 100 + 127), "sample 0 holds .*, and the preprocessing of this bundle makes"),
        (np.full((4000, 3, 4, 4), 255, np.float32), "sample 0 holds 255, and the preprocessing of this bundle makes"),
    ],
)
def test_a_wrong_input_is_refused_with_what_was_found_and_expected(shared_session: Session, images, found):
    with pytest.raises(RuntimeInputError, match=found) as caught:
        shared_session(images)
    expectation = "a float32 array of shape (N, 3, 4, 4)"
    if "sample" in found:
        expectation = "finite numbers" if "NaN" in found else "no more than 10 times as much"
    assert f"expected {expectation}" in caught.value.message


def test_a_closed_session_is_refused(tiny_bundle: Path):
    with load(tiny_bundle) as session:
        session(make_images(1))
    with pytest.raises(RuntimeInputError, match="closed"):
        session(make_images(1))
    session.close()


def test_a_piece_that_fails_is_named_and_the_session_stays_usable(spied: Session, spy: Spy):
    spied.use("fast")

    def fail(piece: str) -> None:
        if piece == "exit_07_linear":
            raise PieceError(f"piece {piece} failed: out of memory")

    spy.before = fail
    with pytest.raises(PieceError, match="piece exit_07_linear failed: out of memory"):
        spied(make_images(8))
    spy.before = lambda piece: None
    np.testing.assert_array_equal(spied(make_images(8)).logits, expected(make_images(8), spied.configuration).logits)


# --- the budget ------------------------------------------------------------------------------------------------------


@pytest.fixture
def priced(tiny_bundle: Path) -> Iterator[Session]:
    """A session whose front says what it costs."""
    with load(tiny_bundle, threads=1) as session:
        entries = [
            Entry(exits=NAMED[name], search=Figures(accuracy, 0.9 - accuracy, cost, 100, ()))
            for name, accuracy, cost in (("fast", 0.7, 0.4), ("balanced", 0.85, 0.6), ("full", 0.9, 1.0))
        ]
        session.bundle.configurations = Configurations(named={"full": Entry(exits={})}, front=tuple(entries))
        yield session


@pytest.mark.parametrize(
    ("budget", "name"), [(0.4, "fast"), (0.59, "fast"), (0.6, "balanced"), (0.99, "balanced"), (2, "full")]
)
def test_a_budget_picks_the_most_accurate_configuration_within_it(priced: Session, budget: float, name: str) -> None:
    priced.budget = budget
    assert priced.configuration.exits == NAMED[name]
    assert priced.budget == budget
    priced.use("full")
    assert priced.budget is None


@pytest.mark.parametrize("budget", [0.39, 0, -1, float("nan")])
def test_a_budget_that_nothing_meets_leaves_the_knob_alone(priced: Session, budget: float) -> None:
    priced.budget = 0.6
    with pytest.raises(ConfigurationError, match=r"the cheapest configuration costs 0\.400"):
        priced.budget = budget
    assert priced.configuration.exits == NAMED["balanced"]
    assert priced.budget == 0.6


@pytest.mark.parametrize("budget", [60, float("inf"), "0.6", None, True])
def test_a_budget_that_is_no_share_is_refused(priced: Session, budget: object) -> None:
    priced.budget = 0.6
    with pytest.raises(ConfigurationError, match=r"expected a share of the full model's cost, such as 0\.6"):
        priced.budget = budget  # type: ignore[assignment]
    assert priced.budget == 0.6


def test_a_budget_needs_a_search(tiny_bundle: Path) -> None:
    with load(tiny_bundle, threads=1) as session, pytest.raises(ConfigurationError, match="no searched configurations"):
        session.budget = 0.5


# --- moving together -------------------------------------------------------------------------------------------------


@given(batches, configurations, st.integers(1, 10), st.integers(1, 10))
def test_answers_do_not_depend_on_when_samples_are_moved_together(
    tiny_bundle: Path, images, configuration, first, second
):
    assume(not near_threshold(images, configuration))
    with load(tiny_bundle, threads=1) as session:
        session._plans._min_exited_to_compact = {"3": first, "7": second}
        session.use(configuration)
        result, answer = session(images), expected(images, configuration)
        np.testing.assert_array_equal(result.exit, answer.exit)
        np.testing.assert_array_equal(result.logits, answer.logits)


@pytest.mark.parametrize(("measured", "asked", "chunks"), [(0, None, [40]), (16, None, [16, 16, 8]), (16, 32, [32, 8])])
def test_a_call_runs_in_the_chunks_that_were_measured_best_unless_others_are_asked_for(
    tiny_bundle: Path, own_cache: Path, spy: Spy, measured, asked, chunks
):
    write_tuning(open_bundle(tiny_bundle), "onnxruntime", 1, Tuning(measured))
    with load(tiny_bundle, threads=1, max_batch=asked) as session:
        session.use("full")
        session(make_images(40))
    assert [samples for _, samples in spy.calls] == chunks


@pytest.mark.parametrize(("worth", "second"), [(1, "fewer"), (41, "all")])
def test_samples_are_moved_together_only_when_enough_have_left(
    spied: Session, own_cache: Path, spy: Spy, worth, second
):
    write_tuning(spied.bundle, "onnxruntime", spied.spec.threads, Tuning(0, {"3": worth}))
    images = make_images(40)
    with Session(spied.bundle, None, spied.spec) as tuned:
        tuned.use("fast")
        left = int((tuned(images).exit == 0).sum())
    assert 0 < left < 40
    rows = dict(spy.calls)
    assert rows["segment_01"] == rows["exit_07_linear"] == (40 - left if second == "fewer" else 40)


def test_what_is_printed_of_a_session_and_a_result_is_short(shared_session: Session):
    shared_session.use("fast")
    result = shared_session(make_images(500))
    for shown in (repr(shared_session), repr(result)):
        assert len(shown) < 250
        assert "'fast'" in shown
    assert "tiny.dyce" in repr(shared_session)
    assert f"class {result.label[0]} at" in repr(result)


def test_figures_of_a_configuration_are_printed_rounded():
    figures = Figures(accuracy=0.93456, loss=-0.01, cost=1 / 3, samples=80, share_per_exit=(0.5, 0.5), loss_error=0.02)
    assert repr(figures) == "<accuracy 93.5%, loses -1.00 ± 2.00 points, costs 33.3% of full, on 80 samples>"


def test_exits_have_names_in_results_beside_their_index(shared_session: Session):
    shared_session.use("fast")
    result = shared_session(make_images(40))
    ids = [exit.id for exit in shared_session.manifest.exits]
    assert result.exit_name == tuple(ids[index] for index in result.exit)
    assert len(set(result.exit_name)) > 1
    one = shared_session(make_images(1))
    assert one.exit_name == (ids[one.exit[0]],)
    (streamed,) = shared_session.stream(make_images(1))
    assert streamed.exit_name == one.exit_name


def test_a_session_lists_its_configurations_with_what_they_lose_and_cost(bundle_copy: Path):
    known = open_bundle(bundle_copy).configurations
    figures = Figures(0.8, 0.1, 0.4, 100, (0.5, 0.25, 0.25))
    named = known.named | {"fast": msgspec.structs.replace(known.named["fast"], test=figures)}
    write_configurations(msgspec.structs.replace(known, named=named), bundle_copy)
    with load(bundle_copy, threads=1) as session:
        assert list(session.configurations) == list(known.named)
        assert session.configurations["fast"].loss == 0.1
        assert session.configurations["fast"].cost == 0.4
        assert session.configurations["full"] is None
