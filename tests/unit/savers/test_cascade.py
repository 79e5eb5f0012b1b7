"""A bundle with savers answers as its models would, run one after another by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dyce_runtime import Configuration, Session, load
from dyce_runtime.control.work_cap import WorkCap, exit_shares
from dyce_runtime.errors import ConfigurationError, RuntimeInputError
from dyce_runtime.execution.plan import path_macs
from dyce_runtime.inputs.pictures import Pictures
from dyce_runtime.inputs.preprocessing import preprocess
from dyce_runtime.program.structure import bodies
from tests.bundles import Spy
from tests.cascades import EXITS, expected, make_inputs, near_threshold, on
from tests.manifests import seen

thresholds = st.sampled_from([0.0, 0.25, 0.3, 0.4, 0.5, 0.7, 1.0])
exits = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("saver0_2", "saver0", "saver1", "exit3", "exit7"), thresholds)
)
NEVER = {"saver0_2": 1.0, "saver0": 1.0, "saver1": 1.0, "exit3": 1.0, "exit7": 1.0}


@pytest.fixture(scope="module")
def session(cascade_bundle: Path) -> Iterator[Session]:
    with load(cascade_bundle, threads=1) as session:
        yield session


@given(exits, st.integers(1, 40), st.integers(0, 100))
def test_every_sample_takes_the_first_exit_that_is_sure(session: Session, named, count, seed):
    configuration, inputs = Configuration("mine", on(**named)), make_inputs(count, seed)
    assume(not near_threshold(inputs, configuration))
    session.use(configuration)
    result, answer = session(inputs), expected(inputs, configuration)
    np.testing.assert_array_equal(result.exit, answer.exit)
    np.testing.assert_array_equal(result.logits, answer.logits)
    np.testing.assert_array_equal(result.label, answer.label)
    np.testing.assert_allclose(result.confidence, answer.confidence, atol=1e-6)


@given(exits, st.integers(0, 25), st.integers(1, 6), st.integers(0, 100))
def test_a_stream_answers_alike(session: Session, named, count, batch, seed):
    configuration, inputs = Configuration("mine", on(**named)), make_inputs(max(count, 1), seed)
    assume(not near_threshold(inputs, configuration))
    session.use(configuration)
    samples = [{name: images[row] for name, images in inputs.items()} for row in range(count)]
    results = list(session.stream(samples, batch=batch, in_flight=2 * batch))
    answer = expected(inputs, configuration)
    assert [int(result.exit[0]) for result in results] == answer.exit[:count].tolist()
    for result, logits in zip(results, answer.logits, strict=False):
        np.testing.assert_array_equal(result.logits[0], logits)


def test_a_saver_runs_as_far_as_its_last_exit_that_is_on(session: Session):
    def bodies(**named: float) -> list[tuple[str, ...]]:
        plan = session.plan(Configuration(str(named), on(**named)))
        return [stretch.body for stretch in seen(plan, session.manifest)]

    assert bodies() == [("full",)], "the full model, with no saver"
    assert bodies(saver0_2=0.5) == [("saver0_segment_00",), ("full",)]
    assert bodies(saver0=0.5) == [("saver0_segment_00", "saver0_segment_01"), ("full",)]
    assert bodies(saver1=0.5, exit7=0.5) == [("saver1_segment_00",), ("segment_00", "segment_01"), ("segment_02",)]


def test_what_a_sample_pays_counts_the_savers_that_run(session: Session):
    manifest = session.manifest
    macs = {exit: piece.macs for exit, (piece,) in bodies(manifest).items()}
    first, head = macs["saver0.2"], manifest.piece("saver0_exit_02_linear").macs
    base = sum(macs[exit] for exit in ("3", "7", "final"))
    assert path_macs(manifest, Configuration("full"))[-1] == base == manifest.model.macs
    assert path_macs(manifest, Configuration("a", on(saver0_2=0.5)))[-1] == first + head + base
    both = path_macs(manifest, Configuration("b", on(saver0=0.5, saver1=0.5)))
    assert both[EXITS.index("saver0")] == first + macs["saver0"]
    assert both[-1] == first + macs["saver0"] + macs["saver1"] + base


def test_the_base_runs_on_what_no_saver_has_answered(cascade_bundle: Path, spy: Spy):
    inputs, configuration = make_inputs(64), Configuration("mine", on(saver0=0.35, exit7=0.6))
    with load(cascade_bundle) as session:
        session.use(configuration)
        result = session(inputs)
    left = int((result.exit == EXITS.index("saver0")).sum())
    assert 0 < left < 64
    assert ("saver0_segment_00", 64) in spy.calls
    assert ("segment_00", 64 - left) in spy.calls
    np.testing.assert_array_equal(result.exit, expected(inputs, configuration).exit)


def test_the_uncut_model_is_the_base_alone(session: Session):
    inputs = make_inputs(9)
    np.testing.assert_array_equal(session.run_uncut(inputs), expected(inputs, Configuration("full")).label)


def test_pictures_are_prepared_for_every_network(session: Session):
    pictures = np.random.default_rng(0).integers(0, 256, (3, 9, 7, 3), dtype=np.uint8)
    inputs = session.preprocess(pictures)
    assert {name: images.shape for name, images in inputs.items()} == {  # type: ignore[union-attr]
        "image": (3, 3, 4, 4),
        "saver0_image": (3, 3, 2, 2),
    }
    for name, images in session.preprocess(picture for picture in pictures).items():  # type: ignore[union-attr]
        np.testing.assert_array_equal(images, inputs[name])  # type: ignore[call-overload]


def test_a_picture_is_prepared_for_the_base_only_when_it_gets_there(session: Session, monkeypatch: pytest.MonkeyPatch):
    random = np.random.default_rng(3)
    pictures = list(
        random.integers(0, 256, (12, 4, 4, 3), dtype=np.uint8) * random.integers(0, 2, (12, 1, 1, 1), np.uint8)
    )
    configuration = Configuration("mine", on(saver0=0.35))
    session.use(configuration)
    whole = dict(session.preprocess(pictures))  # type: ignore[arg-type]
    answer = expected(whole, configuration)
    assert 0 < (answer.exit == 1).sum() < 12
    prepared: list[tuple[tuple[int, int], int]] = []

    def counted(images, way):
        prepared.append((way.crop, len(images)))
        return preprocess(images, way)

    monkeypatch.setattr("dyce_runtime.inputs.pictures.preprocess", counted)
    result = session(session.preprocess(pictures))
    np.testing.assert_array_equal(result.exit, answer.exit)
    np.testing.assert_allclose(result.logits, answer.logits, atol=1e-5)
    assert prepared == [((2, 2), 12), ((4, 4), int((answer.exit != 1).sum()))]
    streamed = list(session.stream(map(session.preprocess, pictures), batch=5))
    assert [int(one.exit[0]) for one in streamed] == answer.exit.tolist()
    with pytest.raises(RuntimeInputError, match="found 2 pictures in one sample"):
        next(session.stream([session.preprocess(pictures[:2])]))


def test_pictures_of_another_bundle_are_refused(session: Session):
    ways = {"image": session.manifest.preprocessing, "other": session.manifest.preprocessing}
    pictures = Pictures([np.zeros((4, 4, 3), np.uint8)], ways, "image")
    with pytest.raises(RuntimeInputError, match="found images for image, other"):
        session(pictures)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda inputs: inputs["image"], "expected a dictionary with images for saver0_image, image"),
        (lambda inputs: {"image": inputs["image"]}, "found images for image; expected a dictionary with images for"),
        (lambda inputs: {**inputs, "other": inputs["image"]}, "found images for image, saver0_image, other"),
        (lambda inputs: {**inputs, "image": inputs["image"][:1]}, "2 for saver0_image, 1 for image; expected the same"),
        (
            lambda inputs: {**inputs, "saver0_image": inputs["image"]},
            r"expected a float32 array of shape \(N, 3, 2, 2\)",
        ),
    ],
)
def test_images_that_do_not_fit_are_refused(session: Session, change, message):
    with pytest.raises(RuntimeInputError, match=message):
        session(change(make_inputs(2)))


@given(st.sampled_from([0.2, 0.5, 0.9, 1.2, 1.6]), exits)
def test_no_sample_costs_more_than_the_cap(cascade_bundle: Path, share, named):
    with load(cascade_bundle, threads=1) as session:
        manifest, configuration = session.manifest, Configuration("mine", on(**named))
        session.use(configuration)
        try:
            cap = WorkCap(session, share)
        except ConfigurationError:
            assert exit_shares(manifest, configuration, {}).min() > share
            return
        with cap:
            result = session(make_inputs(20))
        assert exit_shares(manifest, configuration, {})[result.exit].max() <= share
