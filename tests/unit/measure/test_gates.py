"""What is measured or observed of a configuration goes by its own setting of the gates."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from dyce_runtime import Session, load
from dyce_runtime.bundle.configuration import Entry
from dyce_runtime.bundle.reader import RECORDS, Bundle, open_bundle
from dyce_runtime.inputs.datasets import Dataset
from dyce_runtime.measure.bench import choose
from dyce_runtime.measure.bench_loss import answer_all
from dyce_runtime.monitoring.observation import Observation
from tests.bundles import HEAD, make_images
from tests.choices import NAMED, make_choices


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return open_bundle(make_choices(tmp_path_factory.mktemp("gates") / "choices.dyce"))


@pytest.fixture(scope="module")
def session(bundle: Bundle) -> Iterator[Session]:
    with load(bundle.path, target="onnxruntime", threads=1) as session:
        yield session


def test_answers_are_those_of_calls_with_the_same_gates(session: Session):
    pictures = np.random.default_rng(0).integers(0, 256, (60, 4, 4, 3), dtype=np.uint8)
    data, wanted = Dataset("made", pictures, None), list(NAMED.values())
    full, answers = answer_all(session, data, np.arange(60), wanted, lambda batches: batches)
    np.testing.assert_array_equal(full, answers[0].labels)
    for configuration, found in zip(wanted, answers, strict=True):
        session.use(configuration)
        result = session(session.preprocess(list(pictures)))
        np.testing.assert_array_equal(result.label, found.labels)
        np.testing.assert_array_equal(result.exit, found.exits)
    assert len({tuple(found.labels) for found in answers}) > 2, "the gates make a difference"


def test_a_configuration_that_differs_in_gates_alone_is_another_one(bundle: Bundle):
    front = (Entry({}, gates={"block": 1}), Entry({}, gates={"block": 0, "late": 0}))
    known = msgspec.structs.replace(bundle.configurations, front=front)
    found = choose(Bundle(bundle.path, bundle.manifest, known), ["all"])
    assert [one.name for one in found] == [*bundle.configurations.named, "front 1"]


def test_records_with_other_gates_are_nothing_to_compare_with(bundle: Bundle, session: Session, tmp_path: Path):
    (tmp_path / RECORDS).parent.mkdir()
    scores = np.random.default_rng(0).random((300, 3), np.float32)
    np.savez(tmp_path / RECORDS, exit=["3", "7"], head=[HEAD] * 2, scores=scores, split=["test"] * 300)
    watched = Observation(Bundle(tmp_path, bundle.manifest, bundle.configurations))
    for name in ("early", "narrow"):
        session.use(NAMED[name])
        watched(session(make_images(9)), 0.001)
    reports = watched.as_dict()["drift"]["configurations"]
    reasons = {one["configuration"]["name"]: one["exits"]["final"]["reason"] for one in reports}
    assert "gates" not in reasons["early"]
    assert reasons["narrow"] == "the records were made with other settings of the gates"
