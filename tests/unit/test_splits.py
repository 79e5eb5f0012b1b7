import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dyce_calibration.splits import HOLD_OUT, VAL_SHARES, divide
from dyce_runtime.errors import DataError

SEEDS = st.integers(0, 2**63)


def content(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, n, dtype=np.uint64)


@settings(deadline=None, max_examples=50)
@given(n=st.integers(200, 2000), seed=SEEDS)
def test_splits_are_disjoint_and_cover_everything(n, seed):
    splits = divide(content(n), VAL_SHARES, seed)
    assert list(splits) == list(VAL_SHARES)
    assert np.array_equal(np.sort(np.concatenate(list(splits.values()))), np.arange(n))


@settings(deadline=None, max_examples=50)
@given(seed=SEEDS, order=st.integers(0, 2**32 - 1))
def test_a_picture_stays_where_it_is_whatever_surrounds_it(seed, order):
    hashes = content(600)
    kept = np.random.default_rng(order).permutation(600)[:400]  # another order, and a third is missing
    before, after = divide(hashes, VAL_SHARES, seed), divide(hashes[kept], VAL_SHARES, seed)
    for name in VAL_SHARES:
        assert set(hashes[kept][after[name]]) <= set(hashes[before[name]])


@settings(deadline=None, max_examples=50)
@given(seed=SEEDS)
def test_equal_pictures_stay_together(seed):
    hashes = np.tile(content(400), 3)
    sides = [set(hashes[indices]) for indices in divide(hashes, VAL_SHARES, seed).values()]
    assert sum(map(len, sides)) == 400


@pytest.mark.parametrize("hashes", [content(20000), np.arange(20000, dtype=np.uint64)], ids=["random", "consecutive"])
def test_shares_are_kept(hashes):
    for seed in range(20):
        for name, indices in divide(hashes, VAL_SHARES, seed).items():
            share = VAL_SHARES[name]
            assert abs(indices.size / 20000 - share) < 5 * np.sqrt(share * (1 - share) / 20000)


def test_a_held_out_part_can_be_divided_again_with_the_same_seed():
    hashes = content(20000)
    held_out = divide(hashes, {"fit": 1 - HOLD_OUT, "val": HOLD_OUT}, seed=0)["val"]
    again = divide(hashes[held_out], VAL_SHARES, seed=0)
    for name, share in VAL_SHARES.items():
        assert again[name].size / held_out.size == pytest.approx(share, abs=0.03)


def test_another_seed_is_another_division():
    first, second = (divide(content(2000), VAL_SHARES, seed)["test"] for seed in (0, 1))
    assert np.intersect1d(first, second).size < 0.5 * first.size


def test_the_division_is_the_same_everywhere():
    """Pinned: published results name a seed, and a bundle's records must not leak into another version's test split."""
    splits = divide(np.arange(24, dtype=np.uint64), {"a": 0.5, "b": 0.5}, seed=7)
    assert splits["a"].tolist() == [0, 1, 2, 5, 7, 12, 13, 14, 15, 19, 22, 23]
    assert splits["a"].dtype == np.int64


def test_too_few_pictures_are_refused_with_the_number_needed():
    with pytest.raises(DataError, match="found 2 different pictures") as caught:
        divide(np.array([1, 2, 1, 1, 2], np.uint64), VAL_SHARES, seed=0)
    assert "at least 50" in caught.value.hint


@pytest.mark.parametrize("shares", [{"a": 0.5, "b": 0.4}, {"a": 1.0, "b": 0.0}])
def test_shares_that_do_not_add_up_are_a_mistake_of_the_caller(shares):
    with pytest.raises(ValueError, match="add up to 1"):
        divide(content(100), shares, seed=0)
