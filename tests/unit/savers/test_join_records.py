"""Records of a saver on the pictures of a base."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dyce_calibration.records import Records
from dyce_export.progress import Progress
from dyce_export.savers.join_records import join_records, own_records, recorded_like, unseen_by
from dyce_runtime.bundle.manifest import BUILTIN
from dyce_runtime.bundle.reader import RECORDS, SPLITS, Bundle, open_bundle
from dyce_runtime.errors import DataError


def make_records(hashes: list[int], exits: tuple[str, ...] = ()) -> Records:
    """Confidences and predictions that say which sample they belong to."""
    columns = len(exits) + 1
    named = np.array(hashes, np.uint64)
    said = np.stack([named.astype(np.int64) % 5] * columns, axis=1)
    sure = np.stack([named.astype(np.float32) / 1000] * columns, axis=1)
    heads = tuple((exit, "mlp") for exit in exits)
    return Records.of_single_label(heads, said, sure, named.astype(np.int64) % 5, named, np.full(len(named), "search"))


@pytest.fixture(scope="module")
def saver(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with records of the samples 0 to 19, backwards."""
    bundle = Bundle(
        tmp_path_factory.mktemp("saver"), open_bundle(tiny_bundle).manifest, open_bundle(tiny_bundle).configurations
    )
    bundle.file(RECORDS).parent.mkdir()
    make_records(list(range(19, -1, -1)), ("3", "7")).save(bundle.file(RECORDS))
    return bundle


@given(st.lists(st.integers(0, 19), min_size=1, max_size=25))
def test_what_a_saver_has_recorded_is_put_into_the_order_of_the_base(saver: Bundle, hashes):
    like = make_records(hashes)
    found = own_records(like, saver)
    assert found is not None
    np.testing.assert_array_equal(found.scores[:, -1], np.array(hashes, np.float32) / 1000)
    np.testing.assert_array_equal(found.predictions[:, 0], np.array(hashes) % 5)
    np.testing.assert_array_equal(found.hashes, like.hashes)


def test_pictures_that_were_not_recorded_have_to_be_given(saver: Bundle):
    assert own_records(make_records([3, 20]), saver) is None
    with pytest.raises(DataError, match="saver tiny was not recorded on the pictures"):
        recorded_like(make_records([3, 20]), saver, None, Progress())


def test_columns_of_savers_stand_before_those_of_the_base_in_its_classes():
    base, first = make_records([1, 2, 3], ("4",)), make_records([1, 2, 3], ("1",))
    joined = join_records(base, ["saver0"], [first], [(1, 2, 3, 4, 0)])
    assert joined.heads == (("saver0.1", "mlp"), ("saver0", BUILTIN), ("4", "mlp"))
    # Class 1 of the saver is class 0 of the base, and so on.
    np.testing.assert_array_equal(joined.predictions[:, :2], [[0, 0], [1, 1], [2, 2]])
    np.testing.assert_array_equal(joined.predictions[:, 2:], base.predictions)
    assert joined.scores.shape == (3, 4)


# --- samples by which a saver was made -------------------------------------------------------------------------------


@pytest.fixture
def made_with(saver: Bundle) -> Iterator[Callable[..., None]]:
    """Says by which samples the saver was made, split by split."""
    path = saver.file(SPLITS)

    def store(**splits: list[int]) -> None:
        np.savez(path, **{name: np.array(hashes, np.uint64) for name, hashes in splits.items()})

    yield store
    path.unlink()


SPLIT = np.array(["temperature", "search", "certification", "certification", "test", "test"])


def test_what_certifies_and_tests_has_not_been_seen_by_a_saver(saver: Bundle, made_with, caplog):
    like = replace(make_records([1, 2, 3, 4, 5, 6]), split=SPLIT)
    made_with(heads=[1, 3], temperature=[2], search=[5], certification=[4], test=[6])
    assert unseen_by([saver], like).hashes.tolist() == [1, 2, 4, 6]
    assert "2 samples are not used to certify and test" in caplog.text


def test_savers_of_the_same_division_leave_everything_in(saver: Bundle, made_with):
    like = replace(make_records([1, 2, 3, 4, 5, 6]), split=SPLIT)
    assert unseen_by([saver], like) is like
    made_with(heads=[9], temperature=[1], search=[2], certification=[3, 4], test=[5, 6])
    assert unseen_by([saver], like) is like


def test_nothing_left_to_test_with_is_an_error(saver: Bundle, made_with):
    like = replace(make_records([1, 2, 3, 4, 5, 6]), split=SPLIT)
    made_with(search=[5, 6])
    with pytest.raises(DataError, match="made with all samples of the split 'test'") as caught:
        unseen_by([saver], like)
    assert "--seed" in caught.value.hint
