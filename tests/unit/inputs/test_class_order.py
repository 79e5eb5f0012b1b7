"""Which order of the classes fits what a model answers, and when nothing fits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dyce_runtime.inputs.class_order import Comparison, choose, doubt_of, doubt_of_folders, numberings, sample_rows

TWELVE = [str(number) for number in range(12)]


def answers_of(labels, *, right, classes, seed=0):
    """What a model says that is right on a share of the samples, and otherwise names any class."""
    random = np.random.default_rng(seed)
    guesses = random.integers(0, classes, len(labels))
    return np.where(random.random(len(labels)) < right, labels, guesses)


def ways_of(folders, truth, *, right=0.9, each=25, seed=0):
    """The numberings of folders, and each next to the answers of a model that numbers them as ``truth`` does."""
    ways = numberings(folders, len(folders))
    picture_folders = np.repeat(folders, each)
    answers = answers_of(np.array([truth[f] for f in picture_folders]), right=right, classes=len(folders), seed=seed)
    found = [Comparison(np.array([way.indices[f] for f in picture_folders]), answers, len(folders)) for way in ways]
    return ways, found


def test_folders_that_are_numbers_may_mean_these_or_their_place():
    by_number, by_string = numberings(TWELVE, 12)
    assert by_number.indices["10"] == 10
    assert by_string.indices["10"] == 2
    assert "torchvision" in by_string.name


def test_numbers_from_one_on_are_places_and_not_indices():
    folders = [str(number) for number in range(1, 11)]
    assert [dict(way.indices)["10"] for way in numberings(folders, 10)] == [1, 9]


def test_orders_that_are_the_same_are_one():
    assert len(numberings(["ant", "bee", "cat"], 3)) == 1
    assert len(numberings(["0", "1", "2"], 3)) == 1


def test_natural_order_looks_at_numbers_in_names_and_not_at_case():
    by_string, natural = numberings(["class10", "Class2", "class1"], 3)
    assert list(by_string.indices) == ["Class2", "class1", "class10"]
    assert list(natural.indices) == ["class1", "Class2", "class10"]


def test_some_of_the_folders_can_only_be_numbers():
    assert [way.indices for way in numberings(["3", "7"], 10)] == [{"3": 3, "7": 7}]
    assert numberings(["3", "17"], 10) == ()
    assert numberings(["cat", "dog"], 10) == ()
    assert numberings(["1", "01"], 10) == ()


@pytest.mark.parametrize("way", [0, 1])
@given(right=st.floats(0.3, 1.0), seed=st.integers(0, 1000))
def test_the_order_of_the_model_is_found(way, right, seed):
    truth = numberings(TWELVE, 12)[way].indices
    ways, found = ways_of(TWELVE, truth, right=right, seed=seed)
    best, sure = choose(found)
    assert (best, sure) == (way, True)
    assert doubt_of_folders(ways, found, best, sure=sure, source="x") is None


def test_an_order_of_its_own_is_shown_and_not_guessed():
    order = np.random.default_rng(3).permutation(12)
    truth = {folder: int(place) for folder, place in zip(TWELVE, order, strict=True)}
    ways, found = ways_of(TWELVE, truth)
    best, sure = choose(found)
    doubt = doubt_of_folders(ways, found, best, sure=sure, source="photos")
    assert doubt is not None
    assert doubt.order
    assert all(f"{folder} -> {place}" in doubt.message for folder, place in truth.items())
    assert "--classes" in doubt.hint


def test_two_swapped_classes_are_noticed_where_the_order_is_given():
    labels = np.repeat(np.arange(10), 25)
    swapped = np.array([0, 1, 2, 5, 4, 3, 6, 7, 8, 9])[labels]
    doubt = doubt_of(Comparison(labels, answers_of(swapped, right=0.9, classes=10), 10), "x", "abcdefghij")
    assert doubt is not None
    assert "d -> 5, f -> 3" in doubt.message


@given(right=st.floats(0.35, 1.0), seed=st.integers(0, 10_000), classes=st.integers(2, 40))
def test_a_poor_model_in_the_right_order_is_believed(right, seed, classes):
    labels = np.repeat(np.arange(classes), max(20, 300 // classes))
    assert (
        doubt_of(Comparison(labels, answers_of(labels, right=right, classes=classes, seed=seed), classes), "x") is None
    )


@given(right=st.floats(0.55, 1.0), seed=st.integers(0, 10_000), classes=st.integers(3, 20))
def test_a_model_with_favourite_mistakes_is_believed(right, seed, classes):
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), 40)
    favourites = random.integers(0, classes, classes)[labels]
    answers = np.where(random.random(len(labels)) < right, labels, favourites)
    assert doubt_of(Comparison(labels, answers, classes), "x") is None


def test_two_labels_for_one_class_are_no_order():
    """A model that hardly knows class 3, and takes 9 for it: not an order of the classes, only a poor model."""
    labels = np.repeat(np.arange(10), 30)
    answers = np.where(labels == 9, 3, labels)
    answers[(labels == 3) & (np.arange(300) % 2 == 0)] = 8
    assert doubt_of(Comparison(labels, answers, 10), "x") is None


def test_a_class_that_is_taken_for_another_is_no_order():
    labels = np.repeat(np.arange(5), 60)
    answers = np.where(labels == 2, 4, labels)
    assert doubt_of(Comparison(labels, answers, 5), "x") is None


@given(seed=st.integers(0, 10_000), share=st.floats(0.5, 0.95))
def test_most_frequent_classes_do_not_hide_chance(seed, share):
    random = np.random.default_rng(seed)
    labels = (random.random(400) > share).astype(int)
    always = Comparison(labels, np.zeros(400, int), 2)
    assert always.by_chance()
    assert not Comparison(labels, np.where(random.random(400) < 0.9, labels, 0), 2).by_chance()


@given(seed=st.integers(0, 10_000), rare=st.integers(2, 40), right=st.floats(0.8, 1.0))
def test_a_model_that_finds_what_is_rare_is_believed(seed, rare, right):
    """Most labels are of one class, which alone makes nine answers in ten right."""
    random = np.random.default_rng(seed)
    labels = (np.arange(400) < rare).astype(int)
    answers = np.where((random.random(400) < right) | (labels == 0), labels, 0)
    if (answers == 1).sum() > 1:
        assert not Comparison(labels, answers, 2).by_chance()


@given(seed=st.integers(0, 10_000), classes=st.integers(2, 12))
def test_the_error_of_chance_is_that_of_shuffled_answers(seed, classes):
    random = np.random.default_rng(seed)
    labels, answers = (random.integers(0, random.integers(1, classes + 1), 60) for _ in range(2))
    comparison = Comparison(labels, answers, classes)
    shares = [(labels == random.permutation(answers)).mean() for _ in range(2000)]
    assert np.mean(shares) == pytest.approx(comparison.chance, abs=0.01)
    assert np.std(shares) == pytest.approx(comparison.chance_error, rel=0.12, abs=0.002)


def test_few_labels_say_nothing_of_chance_and_do_not_choose_an_order():
    labels = np.arange(12)
    assert not Comparison(labels, np.zeros(12, int), 12).by_chance()
    ways, found = ways_of(TWELVE, numberings(TWELVE, 12)[0].indices, right=1, each=1)
    best, sure = choose(found[:1] + found[:1])
    assert not sure
    doubt = doubt_of_folders([ways[0]] * 2, found[:1] * 2, best, sure=sure, source="x")
    assert "too few" in doubt.message


@given(st.integers(1, 5000), st.integers(2, 1000))
def test_the_sample_is_spread_over_all_pictures(count, classes):
    rows = sample_rows(count, classes)
    assert rows[0] == 0
    assert rows[-1] == count - 1
    assert len(set(rows.tolist())) == len(rows) <= 1024
    assert len(rows) >= min(count, 256)
