from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dyce_calibration.heads.features import BATCH, extract_features
from dyce_runtime.bundle.manifest import Preprocessing
from dyce_runtime.errors import DestinationError, ModelError
from dyce_runtime.inputs.datasets import Dataset
from dyce_runtime.inputs.preprocessing import preprocess

GREY = Preprocessing(resize=4, crop=(4, 4), interpolation="bilinear", mean=(0.0,), std=(1.0,))
COUNT = 2 * BATCH + 7


def prepare(pictures: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(preprocess(pictures, GREY))


def dataset(labelled: bool = True) -> Dataset:
    """Pictures that carry their own number: pixel (0, 0) and (0, 1) in base 256."""
    pictures = np.random.default_rng(0).integers(0, 256, (COUNT, 4, 4), dtype=np.uint8)
    pictures[:, 0, 0], pictures[:, 0, 1] = np.arange(COUNT) // 256, np.arange(COUNT) % 256
    return Dataset("numbered", pictures, np.arange(COUNT) % 10 if labelled else None)


def numbers(images: Tensor) -> Tensor:
    pixels = (images[:, 0, 0, :2] * 255).round()
    return pixels[:, 0] * 256 + pixels[:, 1]


class Spy:
    """A backbone whose features say which picture they come from."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        self.batches.append(len(images))
        n = numbers(images)
        logits = torch.nn.functional.one_hot((n.long() * 3) % 7, 7).float()
        return logits, [torch.stack([n, -n], 1), n[:, None] + torch.arange(5)]


def test_every_row_belongs_to_one_picture_its_label_and_its_hash(tmp_path: Path):
    data = dataset()
    features = extract_features(Spy(), data, prepare, tmp_path, seed=0)
    n = features.exits[0][:, 0].astype(int)
    assert sorted(n) == list(range(COUNT))
    np.testing.assert_array_equal(features.labels, data.labels[n])
    np.testing.assert_array_equal(features.hashes, data.hashes[n])
    np.testing.assert_array_equal(features.exits[1], n[:, None] + np.arange(5))
    np.testing.assert_array_equal(features.logits.argmax(1), n * 3 % 7)
    assert (len(features), features.label_source) == (COUNT, "data")


def test_rows_are_in_a_random_order_that_the_seed_repeats(tmp_path: Path):
    orders = [
        extract_features(Spy(), dataset(), prepare, tmp_path / str(i), seed=seed).exits[0][:, 0].tolist()
        for i, seed in enumerate((0, 0, 1))
    ]
    assert orders[0] == orders[1] != orders[2]
    assert abs(np.corrcoef(orders[0], np.arange(COUNT))[0, 1]) < 0.5, "neighbouring rows are a random sample"


def test_without_labels_the_base_models_predictions_take_their_place(tmp_path: Path):
    features = extract_features(Spy(), dataset(labelled=False), prepare, tmp_path, seed=0)
    np.testing.assert_array_equal(features.labels, features.exits[0][:, 0].astype(int) * 3 % 7)
    assert features.label_source == "base"
    assert features.labels.dtype == np.int64


def test_features_are_kept_in_files_and_made_in_small_batches(tmp_path: Path):
    spy = Spy()
    features = extract_features(spy, dataset(), prepare, tmp_path / "deep" / "down", seed=0)
    assert spy.batches == [BATCH, BATCH, 7]
    for store, name in zip((features.logits, *features.exits), ("0.npy", "1.npy", "2.npy"), strict=True):
        assert isinstance(store, np.memmap)
        assert store.dtype == np.float32
        assert Path(store.filename) == tmp_path / "deep" / "down" / name


def test_progress_sees_every_batch(tmp_path: Path):
    seen: list[int] = []
    extract_features(Spy(), dataset(), prepare, tmp_path, seed=0, progress=lambda b: (seen.append(i) or i for i in b))
    assert len(seen) == 3


def test_features_that_do_not_fit_on_the_disk_are_refused_before_the_files_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    needed = COUNT * (7 + 2 + 5) * 4
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, needed - 1))
    spy = Spy()
    with pytest.raises(DestinationError, match="features of this data set need about") as caught:
        extract_features(spy, dataset(), prepare, tmp_path, seed=0)
    assert caught.value.hint
    assert spy.batches == [BATCH], "after one batch it is known"
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, needed))
    assert len(extract_features(Spy(), dataset(), prepare, tmp_path, seed=0)) == COUNT


@pytest.mark.parametrize(("place", "value"), [("logits", np.nan), ("logits", np.inf), ("features", -np.inf)])
def test_a_model_that_does_not_compute_numbers_is_refused_with_the_picture(tmp_path: Path, place: str, value: float):
    def broken(images: Tensor) -> tuple[Tensor, list[Tensor]]:
        logits, pooled = Spy()(images)
        {"logits": logits, "features": pooled[1]}[place][numbers(images) == 70, 1] = value
        return logits, pooled

    with pytest.raises(ModelError, match="NaN or infinity for picture 70 of numbered"):
        extract_features(broken, dataset(), prepare, tmp_path, seed=0)


def test_a_model_may_exclude_a_class(tmp_path: Path):
    def excluding(images: Tensor) -> tuple[Tensor, list[Tensor]]:
        logits, pooled = Spy()(images)
        logits[:, 6] = -np.inf
        return logits, pooled

    features = extract_features(excluding, dataset(), prepare, tmp_path, seed=0)
    assert (features.logits[:, 6] == -np.inf).all()
