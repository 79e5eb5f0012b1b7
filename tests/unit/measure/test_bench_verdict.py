"""What a benchmark says of early exit: whether it is faster, and what it loses, by a clock that the pieces turn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dyce_runtime import Configuration, Session, load
from dyce_runtime.bundle.configuration import Configurations, Entry
from dyce_runtime.inputs.datasets import Dataset
from dyce_runtime.inputs.preprocessing import preprocess
from dyce_runtime.measure.bench import benchmark
from dyce_runtime.measure.bench_loss import loss_of
from dyce_runtime.measure.bench_verdict import loss_words
from tests.bundles import expected, on
from tests.unit.measure.pictures import EARLY, SEGMENT_MACS, make_data, only, store_splits

LATE = Configuration("late", on(exit3=1.0, exit7=1.0))

pytestmark = pytest.mark.usefixtures("own_cache")


# --- time, by a clock that the pieces turn ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("segment", "verdict"),
    [
        (5.0, "is faster: early takes 50% (50% to 50%) of the uncut model's time and 29% of its MACs;"),
        (9.6, "is faster: early takes 96% (96% to 96%) of the uncut model's time and 29% of its MACs;"),
        (9.8, "gains nothing worth naming: early takes 0.98 of the uncut model's time, at 29%"),
        (10.2, "gains nothing worth naming: early takes 1.02 of the uncut model's time, at 29%"),
        (20.0, "loses: the best configuration, early, takes 2.00 times as long as"),
    ],
)
def test_the_verdict_says_gain_none_or_loss(clock, spied: Session, segment, verdict):
    clock |= {"full": 10.0, "segment_00": segment}
    document = benchmark(spied, Dataset("made", make_data().items), [EARLY])
    assert document["verdict"].startswith(f"With 1 picture per call early exit {verdict}")
    entry = only(document)
    assert entry["time_ratio_to_uncut"] == pytest.approx(segment / 10)
    assert entry["time_saved"] == pytest.approx(1 - segment / 10)
    assert entry["macs_saved"] == pytest.approx(1 - (192 + 20) / sum(SEGMENT_MACS))


def test_the_verdict_names_the_best_configuration(clock, spied: Session):
    clock |= {"full": 10.0, "segment_00": 4.0, "segment_01": 4.0, "segment_02": 4.0}
    document = benchmark(spied, make_data(), ["full", LATE, EARLY])
    assert "early takes 40%" in document["verdict"]
    assert [entry["time_ratio_to_uncut"] for entry in document["configurations"]] == pytest.approx([1.0, 1.2, 0.4])


def test_full_alone_allows_no_verdict(clock, spied: Session):
    clock |= {"full": 10.0, "segment_00": 10.0}
    assert "nothing can be said" in benchmark(spied, make_data(), ["full"])["verdict"]


def test_the_verdict_warns_of_untrained_heads(clock, untrained_bundle: Path):
    clock |= {"full": 10.0, "segment_00": 4.0}
    with load(untrained_bundle, allow_untrained=True) as session:
        verdict = benchmark(session, make_data(), [EARLY])["verdict"]
    assert verdict.startswith("The heads are untrained: nothing can be said about early exit.")
    assert "gain" not in verdict


# --- what is lost, beside what is saved ------------------------------------------------------------------------------


def labelled_by_the_model(session: Session, count: int) -> Dataset:
    """Pictures with the labels that the uncut model answers."""
    data = make_data(count)
    images = preprocess(data.images(range(count)), session.manifest.preprocessing)
    return Dataset("made", data.items, expected(images, Configuration("full")).label)


def allowing(session: Session, loss: float | None) -> Configuration:
    """The configuration ``early`` of a bundle that says what it was allowed to lose."""
    entry = Entry(EARLY.exits, allowed_loss=loss)
    session.bundle.configurations = Configurations(named={"early": entry})
    return session.bundle.configuration("early")


def test_a_configuration_that_loses_more_than_its_name_allows_is_flagged(clock, spied: Session):
    clock |= {"full": 10.0, "segment_00": 4.0}
    document = benchmark(spied, labelled_by_the_model(spied, 300), [allowing(spied, 0.02)])
    entry = only(document)
    assert entry["loss"] == pytest.approx(1 - entry["accuracy"])
    assert entry["loss"] > 0.1
    assert (entry["allowed_loss"], entry["loss_verdict"]) == (0.02, "exceeded")
    assert "early exit is faster and loses more than it may: early takes 40%" in document["verdict"]
    assert "more than the 2 it may" in document["verdict"]
    assert "early exit gains" not in document["verdict"]


def test_a_configuration_that_is_right_more_often_is_called_more_accurate(clock, spied: Session):
    clock |= {"full": 10.0, "segment_00": 4.0}
    data = make_data(300)
    images = preprocess(data.images(range(300)), spied.manifest.preprocessing)
    data = Dataset("made", data.items, expected(images, EARLY).label)
    document = benchmark(spied, data, [allowing(spied, 0.01)])
    gained = 1 - document["uncut"]["accuracy"]
    assert gained > 0.1
    assert f"it is {100 * gained:.1f} ± " in document["verdict"]
    assert "points more accurate" in document["verdict"]
    assert "loses" not in document["verdict"]


def test_what_is_undecided_comes_with_how_many_pictures_would_tell():
    entry = {"loss": 0.02, "loss_error": 0.01, "allowed_loss": 0.01, "loss_verdict": "undecided"}
    assert loss_words(entry, 100).endswith("within the 1 it may lose; about 400 would tell")
    for loss in (0.01, 0.01 + 1e-9):  # on the limit no number would
        assert loss_words(entry | {"loss": loss}, 100).endswith("within the 1 it may lose")


def test_three_points_lost_where_two_are_allowed_are_flagged_and_two_and_a_half_on_few_are_undecided():
    labels = np.zeros(10_000, np.int64)
    for count, lost, kind in ((10_000, 300, "exceeded"), (1000, 25, "undecided"), (10_000, 100, "kept")):
        mine = labels[:count].copy()
        mine[:lost] = 1
        found = loss_of(mine, labels[:count], labels[:count], 0.02, None)
        assert (found["loss"], found["loss_verdict"]) == (pytest.approx(lost / count), kind)


def test_a_loss_within_its_error_is_called_undecided(clock, spied: Session):
    clock |= {"full": 10.0, "segment_00": 4.0}
    data = labelled_by_the_model(spied, 200)
    images = preprocess(data.images(range(200)), spied.manifest.preprocessing)
    alike = np.flatnonzero(expected(images, EARLY).label == data.labels)[:2]
    document = benchmark(spied, data.take(alike), [allowing(spied, None)])
    assert only(document)["loss_verdict"] == "undecided"
    assert "on 2 pictures it is undecided whether it loses anything" in document["verdict"]
    assert "gains" not in document["verdict"]


@given(
    worse=st.integers(0, 60),
    better=st.integers(0, 60),
    same=st.integers(0, 500),
    allowed=st.none() | st.floats(0, 0.1),
)
def test_the_error_of_a_loss_is_never_nothing_and_the_verdict_fits_it(worse, better, same, allowed):
    count = worse + better + same
    if count == 0:
        return
    labels = np.zeros(count, np.int64)
    uncut, mine = labels.copy(), labels.copy()
    mine[:worse], uncut[worse : worse + better] = 1, 1
    found = loss_of(mine, uncut, labels, allowed, ["only"])
    loss, error = (worse - better) / count, found["loss_error"]
    assert found["loss"] == pytest.approx(loss)
    assert error > 0
    beyond = loss - (allowed or 0)
    told = {"exceeded": beyond > 0, "loses": beyond > 0, "kept": beyond < 0, "none": beyond < 0, "undecided": True}
    assert told[found["loss_verdict"]]
    assert (found["loss_verdict"] == "undecided") == (abs(beyond) <= 2 * error) or abs(beyond) == 2 * error
    assert (found["worst_class"] is None) == (worse <= better)


def test_the_class_that_loses_most_is_named():
    labels = np.array([0, 0, 0, 1, 1, 1, 2, 2])
    mine = np.array([0, 0, 1, 1, 0, 0, 2, 2])
    found = loss_of(mine, labels, labels, None, ["cat", "dog", "owl"])
    assert found["worst_class"] == {"name": "dog", "lost": 2, "samples": 3}


def test_pictures_that_made_the_bundle_are_a_caveat_of_the_verdict(clock, bundle_copy: Path):
    clock |= {"full": 10.0, "segment_00": 4.0}
    data = make_data(40)
    store_splits(bundle_copy, search=data.hashes[:15], test=data.hashes[15:20])
    with load(bundle_copy) as session:
        assert "15 of the 40 pictures were used to make the bundle" in benchmark(session, data, [EARLY])["verdict"]
        assert "used to make" not in benchmark(session, data.take(np.arange(15, 40)), [EARLY])["verdict"]
