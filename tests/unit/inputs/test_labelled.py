"""Opening pictures for a model: labels that mean what the model means, or a clear no."""

import numpy as np
import pytest
from PIL import Image

from dyce_runtime.bundle.manifest import Preprocessing
from dyce_runtime.errors import DataError
from dyce_runtime.inputs.labelled import ModelFacts, open_labelled

SPEC = Preprocessing(4, (4, 4), "nearest", (0.5,), (0.5,))
NAMES = [str(number) for number in range(12)]


def folders(root, names, each=20):
    """A folder for each name; a picture is as bright as the place of its folder in NAMES says."""
    for name in names:
        (root / name).mkdir(parents=True)
        for k in range(each):
            Image.new("L", (4, 4), 20 * NAMES.index(name) + 5).save(root / name / f"{k}.png")
    return root


def model(order):
    """A classifier that is always right and numbers NAMES by ``order``."""

    def answer(pictures):
        bright = [np.asarray(Image.open(one) if not isinstance(one, np.ndarray) else one).flat[0] for one in pictures]
        return np.array([order[NAMES[int(value) // 20]] for value in bright])

    return answer


BY_STRING = {name: place for place, name in enumerate(sorted(NAMES))}
BY_NUMBER = {name: int(name) for name in NAMES}


@pytest.mark.parametrize("order", [BY_STRING, BY_NUMBER])
def test_all_places_get_the_order_of_the_model(tmp_path, order, caplog):
    places = [folders(tmp_path / "train", NAMES), folders(tmp_path / "val", NAMES[3:])]
    with caplog.at_level("INFO", "dyce_runtime"):
        (train, val), doubts = open_labelled(places, ModelFacts(12, SPEC), model(order))
    assert doubts == ()
    for dataset in (train, val):
        assert dataset.labels.tolist() == [order[path.parent.name] for path in dataset.items]
    assert train.class_names == tuple(sorted(NAMES, key=order.__getitem__))
    assert "100.0 % of" in caplog.text


def test_known_names_are_taken_as_they_are(tmp_path):
    names = tuple(sorted(NAMES, key=BY_STRING.__getitem__))
    (data,), doubts = open_labelled([folders(tmp_path, NAMES)], ModelFacts(12, SPEC, names), model(BY_STRING))
    assert not doubts
    assert data.labels.tolist() == [BY_STRING[path.parent.name] for path in data.items]


@pytest.mark.parametrize("kind", ["folders", "names", "file", "array"])
def test_another_order_is_a_doubt_however_the_labels_came(tmp_path, kind):
    odd = dict(zip(NAMES, np.random.default_rng(1).permutation(12).tolist(), strict=True))
    classes, place = ModelFacts(12, SPEC), folders(tmp_path / "data", NAMES)
    if kind == "names":
        classes = ModelFacts(12, SPEC, tuple(NAMES))
    elif kind == "file":
        (tmp_path / "classes.txt").write_text("\n".join(NAMES))
        classes = ModelFacts(12, SPEC, None, tmp_path / "classes.txt")
    elif kind == "array":
        labels = np.repeat(np.arange(12), 20)
        images = np.broadcast_to((20 * labels + 5)[:, None, None], (240, 16, 16)).astype(np.uint8)
        place = tmp_path / "data.npz"
        np.savez(place, images=images, labels=labels)
    _, doubts = open_labelled([place], classes, model(odd))
    (doubt,) = doubts
    assert doubt.order
    assert (kind == "folders") == doubt.assumed.startswith("The class folders are numbered "), "nothing else is guessed"
    assert all(f"{name} -> {odd[name]}" in doubt.message for name in NAMES)


def test_a_list_of_classes_is_for_the_places_that_have_folders(tmp_path):
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    labels = np.repeat(np.arange(12), 20)
    images = np.broadcast_to((20 * labels + 5)[:, None, None], (240, 16, 16)).astype(np.uint8)
    np.savez(tmp_path / "val.npz", images=images, labels=labels)
    facts = ModelFacts(12, SPEC, None, tmp_path / "classes.txt")
    _, doubts = open_labelled([folders(tmp_path / "data", NAMES), tmp_path / "val.npz"], facts, model(BY_NUMBER))
    assert doubts == ()
    with pytest.raises(DataError, match="no class folders"):
        open_labelled([tmp_path / "val.npz", None], facts, model(BY_NUMBER))


def test_a_doubt_is_looked_at_again_with_more_pictures(tmp_path):
    """A model that is right on three of five pictures of two classes: 256 of them could not tell that from chance."""
    random = np.random.default_rng(4)
    labels = np.arange(2000) % 2
    images = np.broadcast_to((100 * labels)[:, None, None], (2000, 16, 16)).astype(np.uint8)
    np.savez(tmp_path / "two.npz", images=images, labels=labels)
    asked = []

    def answer(pictures):
        truth = np.array([int(picture.flat[0]) // 100 for picture in pictures])
        asked.append(len(truth))
        wrong = 0.5 if sum(asked) <= 256 else 0.4
        return np.where(random.random(len(truth)) < wrong, 1 - truth, truth)

    _, doubts = open_labelled([tmp_path / "two.npz"], ModelFacts(2, SPEC), answer)
    assert doubts == ()
    assert sum(asked) == 256 + 1024


def test_pictures_without_labels_raise_no_doubt(tmp_path):
    def never(pictures):
        raise AssertionError

    (data, nothing), doubts = open_labelled([folders(tmp_path, NAMES) / "3", None], ModelFacts(12, SPEC), never)
    assert data.labels is None
    assert nothing is None
    assert doubts == ()


@pytest.mark.parametrize("known", [True, False])
def test_a_model_far_below_what_was_claimed_for_it_is_a_doubt(tmp_path, known):
    """Before anything is computed with the pictures, so that a dry run sees it, too."""
    half = iter(np.random.default_rng(0).random(10_000) < 0.5)
    right, names = model(BY_STRING), tuple(sorted(NAMES, key=BY_STRING.__getitem__))
    place = folders(tmp_path, NAMES)

    def doubts(answer, claimed):
        facts = ModelFacts(12, SPEC, names if known else None, None, claimed)
        return open_labelled([place], facts, answer)[1]

    def often_wrong(pictures):
        return np.where([next(half) for _ in pictures], right(pictures), 0)

    (doubt,) = doubts(often_wrong, 0.8)
    assert "claims 80.0 %" in doubt.message
    assert str(tmp_path) in doubt.message
    assert "--mean" in doubt.hint
    assert doubts(often_wrong, 0.6) == doubts(right, 0.99) == ()


def test_a_claim_says_nothing_of_a_few_pictures(tmp_path):
    names = tuple(sorted(NAMES, key=BY_STRING.__getitem__))
    often_wrong = np.array([0, 1, 2, 3, 4, 5, 6, 7, 0, 0, 0, 0])
    right = model(BY_STRING)
    facts = ModelFacts(12, SPEC, names, None, 0.99)
    _, doubts = open_labelled([folders(tmp_path, NAMES, each=4)], facts, lambda pictures: often_wrong[right(pictures)])
    assert not doubts
