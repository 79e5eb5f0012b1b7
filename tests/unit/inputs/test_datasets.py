import gzip
import hashlib
import io
import json
import logging
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dyce_runtime.bundle.manifest import Preprocessing
from dyce_runtime.errors import DataError
from dyce_runtime.inputs.datasets import Dataset, open_dataset, require_classes
from dyce_runtime.inputs.preprocessing import preprocess
from tests.real_inputs import fashion_mnist, imagenet_samples

GREY = Preprocessing(resize=28, crop=(28, 28), interpolation="bilinear", mean=(0.5,), std=(0.5,))


def save(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def class_folders(root: Path, **pictures: int) -> Path:
    """A folder per class with so many pictures."""
    for number, (name, count) in enumerate(pictures.items()):
        for index in range(count):
            save(root / name / f"{index:03}.png", seed=1000 * number + index)
    return root


def refused(message: str, hint: str = ""):
    """The DataError that names what was found, with a hint."""

    class Check:
        def __enter__(self):
            self.context = pytest.raises(DataError, match=message)
            self.caught = self.context.__enter__()

        def __exit__(self, *exception):
            done = self.context.__exit__(*exception)
            assert hint in self.caught.value.hint
            return done

    return Check()


# --- class folders ---------------------------------------------------------------------------------------------------


def test_class_folders_take_the_models_class_names(tmp_path):
    dataset = open_dataset(class_folders(tmp_path, dog=2, ant=1), class_names=["cat", "dog", "ant"])
    assert [(path.parent.name, label) for path, label in zip(dataset.items, dataset.labels, strict=True)] == [
        ("ant", 2),
        ("dog", 1),
        ("dog", 1),
    ]
    assert dataset.labels.dtype == np.int64
    assert dataset.class_names == ("cat", "dog", "ant")
    assert dataset.describe() == f"{tmp_path} (pictures: 3, classes: 2)"
    require_classes(dataset)


def test_class_folders_may_be_class_indices(tmp_path):
    dataset = open_dataset(class_folders(tmp_path, **{"9": 1, "010": 1, "2": 1}), num_classes=1000)
    assert dataset.labels.tolist() == [10, 2, 9]


@pytest.mark.parametrize(
    ("name", "text"), [("c.txt", "cat\ndog\nant\n"), ("c.json", json.dumps({"cat": 0, "dog": 1, "ant": 2}))]
)
def test_a_classes_file_maps_folders(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    data = class_folders(tmp_path / "data", dog=1, ant=1)
    dataset = open_dataset(data, num_classes=3, classes_file=tmp_path / name)
    assert dataset.labels.tolist() == [2, 1]
    assert dataset.class_names == ("cat", "dog", "ant")


def test_the_order_of_class_folders_that_nothing_names_stays_open(tmp_path):
    dataset = open_dataset(class_folders(tmp_path, **{"10": 1, "9": 1, "a": 1}), num_classes=3)
    assert dataset.labels.tolist() == [0, 1, 2]
    assert dataset.class_names is None
    by_strings, natural = dataset.numberings
    assert dict(by_strings.indices) == {"10": 0, "9": 1, "a": 2}
    assert dict(natural.indices) == {"9": 0, "10": 1, "a": 2}
    settled = dataset.numbered(natural, 3)
    assert settled.labels.tolist() == [1, 0, 2]
    assert settled.class_names == ("9", "10", "a")
    assert settled.numberings == ()


def test_another_number_of_classes_is_refused_with_three_ways_out(tmp_path):
    with refused("found 2 class folders.*model has 3 classes", "class names, or to class indices, or map"):
        open_dataset(class_folders(tmp_path, a=1, b=1), num_classes=3)


def test_a_misspelt_class_folder_is_not_taken_by_its_place(tmp_path):
    with refused("1 of 3 class folders.*dgo"):
        open_dataset(class_folders(tmp_path, bird=1, cat=1, dgo=1), class_names=["cat", "dog", "bird"])


def test_a_name_that_two_classes_share_says_nothing(tmp_path):
    with refused("1 of 2 class folders.*crane"):
        open_dataset(class_folders(tmp_path, crane=1, heron=1), class_names=["crane", "heron", "crane"])


def test_the_folder_above_train_and_val_is_refused(tmp_path):
    with refused("found the folders train, val", "name one"):
        open_dataset(class_folders(tmp_path, train=1, val=1), num_classes=2)


def test_folder_indices_beyond_the_model_are_refused(tmp_path):
    with refused("found 2 class folders .0, 12., model has 10 classes", "class indices"):
        open_dataset(class_folders(tmp_path, **{"0": 1, "12": 1}), num_classes=10)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.txt", "cat\n", "dog"),
        ("c.txt", "cat\ndog\ncat\n", "twice: cat"),
        ("c.json", "{", "cannot be read"),
        ("c.json", '["cat", "dog"]', "expected JSON"),
        ("c.json", '{"cat": "0"}', "expected JSON"),
        ("missing.txt", None, "cannot be read"),
    ],
)
def test_a_classes_file_that_does_not_fit_is_refused(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with refused(message):
        open_dataset(class_folders(tmp_path / "data", cat=1, dog=1), classes_file=tmp_path / name)


def test_a_classes_file_without_class_folders_is_refused(tmp_path):
    (tmp_path / "c.txt").write_text("cat\ndog\n")
    with refused("has no class folders", "--classes"):
        open_dataset(save(tmp_path / "a.png"), classes_file=tmp_path / "c.txt")


def test_folders_of_one_class_are_mentioned(tmp_path, caplog):
    (tmp_path / "c.json").write_text('{"cat": 0, "lion": 0, "dog": 1}')
    data = class_folders(tmp_path / "data", cat=1, lion=1, dog=1)
    with caplog.at_level(logging.WARNING, "dyce_runtime"):
        dataset = open_dataset(data, num_classes=2, classes_file=tmp_path / "c.json")
    assert dataset.labels.tolist() == [0, 1, 0]
    assert "one class, 0, to 2 folders: cat, lion" in caplog.text


def test_every_kind_of_picture_counts_and_hidden_files_do_not(tmp_path):
    for name in ("a.JPG", "b.jpeg", "c.png", "d.bmp", "e.webp", "f.ppm", "g.tif", "h.TIFF", "j.gif", ".hidden.png"):
        save(tmp_path / "x" / name)
    Image.new("L", (4, 4)).save(tmp_path / "x" / "i.pgm")
    save(tmp_path / "y" / "deeper" / "z.png")
    save(tmp_path / ".cache" / "z.png")
    save(tmp_path / "y" / ".thumbnails" / "z.png")
    (tmp_path / "x" / ".DS_Store").touch()
    (tmp_path / "classes.txt").touch()
    dataset = open_dataset(tmp_path, num_classes=2)
    assert dataset.labels.tolist() == [0] * 10 + [1]
    assert (dataset.skipped, dataset.check()) == (0, dataset)
    spec = Preprocessing(resize=8, crop=(8, 8), interpolation="bilinear", mean=(0.5,) * 3, std=(0.5,) * 3)
    assert preprocess(dataset.images(range(11)), spec).shape == (11, 3, 8, 8)


# --- files that are no pictures --------------------------------------------------------------------------------------


def test_few_bad_files_are_skipped_and_counted(tmp_path, caplog):
    class_folders(tmp_path, a=150, b=150)
    (tmp_path / "b" / "notes.txt").touch()
    (tmp_path / "a" / "007.png").write_bytes(b"not a picture")
    with caplog.at_level(logging.WARNING, "dyce_runtime"):
        dataset = open_dataset(tmp_path, num_classes=2).check()
    assert (len(dataset), dataset.skipped) == (299, 2)
    assert np.bincount(dataset.labels).tolist() == [149, 150]
    assert all(path.parent.name == "ab"[label] for path, label in zip(dataset.items, dataset.labels, strict=True))
    assert "2 of 301 files are no pictures that can be read" in caplog.text
    assert "notes.txt" in caplog.text
    assert "007.png" in caplog.text
    assert "skipped: 2" in dataset.describe()


def test_many_bad_files_are_refused_with_the_first_three(tmp_path):
    class_folders(tmp_path, a=10, b=10)
    for index in range(4):
        (tmp_path / "a" / f"{index:03}.png").write_bytes(b"not a picture")
    dataset = open_dataset(tmp_path, num_classes=2)
    with refused(r"4 of 20 files are no pictures that can be read: .*000.png, .*001.png, .*002.png, \.\.\.$", "1%"):
        dataset.check()


def test_many_other_files_are_refused_at_once(tmp_path):
    class_folders(tmp_path, a=10, b=10)
    (tmp_path / "a" / "data.csv").touch()
    with refused("1 of 21 files are no pictures.*data.csv"):
        open_dataset(tmp_path, num_classes=2)


def test_files_that_break_off_are_skipped_too_with_a_reason(tmp_path, caplog):
    class_folders(tmp_path, a=150, b=150)
    whole = (tmp_path / "a" / "007.png").read_bytes()
    (tmp_path / "a" / "007.png").write_bytes(whole[: len(whole) // 2])
    jpeg = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)).save(jpeg, "JPEG")
    (tmp_path / "b" / "broken.jpg").write_bytes(jpeg.getvalue()[: len(jpeg.getvalue()) // 2])
    with caplog.at_level(logging.WARNING, "dyce_runtime"):
        dataset = open_dataset(tmp_path, num_classes=2).check()
    assert [path.name for path in dataset.skipped_files] == ["007.png", "broken.jpg"]
    assert "2 of 301 files are no pictures that can be read" in caplog.text
    assert "007.png: cannot be read as a picture (" in caplog.text
    assert preprocess(dataset.images(range(len(dataset))), GREY).shape == (299, 1, 28, 28)
    assert dataset.check() is dataset


FOUR = Preprocessing(resize=8, crop=(8, 8), interpolation="bilinear", mean=(0.5,) * 4, std=(0.5,) * 4)


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "L"])
def test_pictures_without_the_channels_of_the_model_are_refused_at_once(tmp_path, mode):
    for index in range(3):
        Image.new(mode, (8, 8)).save(tmp_path / f"{index}.tif")
    with refused("none of 3 pictures fits: .*0.tif: is an image without alpha", "RGBA"):
        open_dataset(tmp_path).check(FOUR)


def test_pictures_with_alpha_and_arrays_are_data_for_four_channels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 4), dtype=np.uint8)
    Image.fromarray(pixels[0]).save(tmp_path / "a.png")
    np.save(tmp_path / "b.npy", pixels[1])
    np.save(tmp_path / "c.npy", (pixels[2] / 255).astype(np.float32))
    np.savez(tmp_path / "d.npz", images=pixels)
    (tmp_path / "d.npz").rename(tmp_path.parent / "d.npz")
    folder, archive = open_dataset(tmp_path).check(FOUR), open_dataset(tmp_path.parent / "d.npz").check(FOUR)
    expected = preprocess(archive.images([0, 1, 2]), FOUR)
    assert np.allclose(preprocess(folder.images([0, 1, 2]), FOUR), expected, atol=1e-6)
    with refused(r"a picture is a uint8 array of shape \(8, 8, 4\): expected 1 or 3 channels", "drops other channels"):
        archive.check(GREY)


@pytest.mark.parametrize("scale", [255, 4, -1])
def test_floats_of_another_scale_are_refused_at_once(tmp_path, scale):
    pixels = np.zeros((300, 8, 8, 4), np.float32)
    pixels[-1, -1, -1, -1] = scale
    np.savez(tmp_path / "d.npz", images=pixels)
    with refused(f"to {max(scale, 0)}: expected uint8 HWC, or floats from 0 to 1", "Divide what goes to 255"):
        open_dataset(tmp_path / "d.npz").check(FOUR)
    as_they_are = Preprocessing(8, (8, 8), "bilinear", (0.0,) * 4, (1.0,) * 4)
    if scale < 255:
        assert len(open_dataset(tmp_path / "d.npz").check(as_they_are)) == 300


# --- other sources ---------------------------------------------------------------------------------------------------


def test_loose_pictures_have_no_labels(tmp_path):
    save(tmp_path / "b.png"), save(tmp_path / "a.png")
    dataset = open_dataset(tmp_path, num_classes=10)
    assert [path.name for path in dataset.items] == ["a.png", "b.png"]
    assert dataset.labels is None
    assert "no labels" in dataset.describe()
    with refused("has no labels", "one folder per class"):
        require_classes(dataset)


def test_one_picture_is_a_data_set_of_one(tmp_path):
    dataset = open_dataset(str(save(tmp_path / "a.png")))
    assert dataset.images([0]) == [tmp_path / "a.png"]
    assert dataset.labels is None


@pytest.mark.parametrize("names", [("images", "labels"), ("x", "y")])
@pytest.mark.parametrize("shape", [(5, 8, 9), (5, 8, 9, 1), (5, 8, 9, 3)])
def test_npz(tmp_path, names, shape):
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.savez(tmp_path / "d.npz", **dict(zip(names, (images, np.array([0, 1, 2, 1, 0], np.uint8)), strict=True)))
    dataset = open_dataset(tmp_path / "d.npz", num_classes=3)
    assert dataset.labels.tolist() == [0, 1, 2, 1, 0]
    assert dataset.labels.dtype == np.int64
    assert all(
        np.array_equal(image, images[index]) for image, index in zip(dataset.images([3, 0]), (3, 0), strict=True)
    )
    assert preprocess(dataset.images([1, 2]), GREY).shape == (2, 1, 28, 28)


U8 = np.zeros((4, 8, 8), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "message", "hint"),
    [
        ({"images": np.full((4, 8, 8), np.nan)}, r"float64 of shape \(4, 8, 8\), expected uint8", "normalisation"),
        ({"images": np.zeros((4, 3, 8, 8), np.uint8)}, r"\(4, 3, 8, 8\), expected \(N, H, W\)", "transpose"),
        ({"images": U8[0]}, r"\(8, 8\), expected \(N, H, W\)", ""),
        ({"images": U8.astype(np.uint16)}, "uint16 .*, expected uint8", "65535"),
        ({"images": U8[..., :3]}, r"\(4, 8, 3\), expected \(N, H, W\)", "images[None]"),
        ({"images": np.full((4, 8, 8, 3), np.inf, np.float32)}, "float32 .*finite floats", ""),
        ({"images": U8, "labels": np.full(4, 255, np.uint8)}, "found label 255, model has 10 classes", "start at 0"),
        ({"images": U8, "labels": np.arange(3)}, "found 3 labels, expected 4", "same order"),
        ({"images": U8, "labels": np.arange(4) + 9}, "found label 12, model has 10 classes", "start at 0"),
        ({"images": U8, "labels": np.arange(4) - 1}, "found label -1", "start at 0"),
        ({"images": U8, "labels": np.zeros(4)}, "labels float64", "class indices"),
        ({"images": U8, "labels": np.zeros((4, 10), int)}, r"shape \(4, 10\)", "one-hot"),
        ({"images": U8[:0], "labels": np.zeros(0, int)}, "found no pictures", ""),
        ({"pictures": U8}, "found the arrays pictures", "images and labels"),
        ({"images": np.array([None, 1])}, "cannot be read", "numpy.stack"),
        ({"images": U8, "labels": np.array(list("abcd"), object)}, "cannot be read", "class indices"),
    ],
)
def test_npz_that_does_not_fit_is_refused(tmp_path, arrays, message, hint):
    np.savez(tmp_path / "d.npz", **arrays)
    with refused(message, hint):
        open_dataset(tmp_path / "d.npz", num_classes=10)


def write_idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.mark.parametrize("below", ["", "raw", "FashionMNIST/raw"])
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_mnist_style_folders(tmp_path, below, ending):
    parts = {"train": np.arange(180, dtype=np.uint8).reshape(5, 4, 9), "t10k": np.full((2, 4, 9), 7, np.uint8)}
    for prefix, images in parts.items():
        write_idx(tmp_path / below / f"{prefix}-images-idx3-ubyte{ending}", images)
        write_idx(tmp_path / below / f"{prefix}-labels-idx1-ubyte{ending}", np.arange(len(images), dtype=np.uint8))
    train, test, default = (open_dataset(f"{tmp_path}{part}", num_classes=10) for part in ("#train", "#test", ""))
    assert np.array_equal(train.items, parts["train"])
    assert np.array_equal(test.items, parts["t10k"])
    assert test.labels.tolist() == [0, 1]
    assert np.array_equal(default.items, parts["train"])
    assert default.source.endswith("#train")  # so that a report says which part was used
    with refused("no part 'val'", "#train or #test"):
        open_dataset(f"{tmp_path}#val")


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"\0\0\x0d" + data[3:], lambda data: b""])
def test_a_damaged_idx_file_is_named(tmp_path, damage):
    file = tmp_path / "t10k-images-idx3-ubyte"
    write_idx(file, U8)
    file.write_bytes(damage(file.read_bytes()))
    with refused("t10k-images-idx3-ubyte: not an IDX file"):
        open_dataset(tmp_path)


def test_a_broken_gzip_file_is_named(tmp_path):
    file = tmp_path / "train-images-idx3-ubyte.gz"
    write_idx(file, np.random.default_rng(0).integers(0, 256, (9, 9, 9), dtype=np.uint8))
    file.write_bytes(file.read_bytes()[:-20])
    with refused("train-images-idx3-ubyte.gz: cannot be read"):
        open_dataset(tmp_path)


def test_fashion_mnist():
    folder = fashion_mnist()
    if folder is None:
        pytest.skip("no Fashion-MNIST: apt-get install dataset-fashion-mnist, or set DYCE_FASHION_MNIST")
    dataset = open_dataset(f"{folder}#test", num_classes=10)
    assert np.bincount(dataset.labels).tolist() == [1000] * 10
    assert preprocess(dataset.images(range(3)), GREY).shape == (3, 1, 28, 28)
    assert np.unique(dataset.hashes).size == np.unique(dataset.items, axis=0).shape[0]


def test_imagenet_pictures():
    samples = imagenet_samples()
    if samples is None:
        pytest.skip("no ImageNet pictures: pip install --no-deps foolbox, or set DYCE_IMAGENET_SAMPLES")
    path, _ = samples[0]
    dataset = open_dataset(path).check()
    assert len(dataset) == 1
    assert preprocess(dataset.images([0]), GREY).shape == (1, 1, 28, 28)


def test_digits():
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    everything, train, test = (open_dataset(name, num_classes=10) for name in ("digits", "digits#train", "digits#test"))
    assert (len(everything), len(train), len(test)) == (1797, 1347, 450)
    assert set(train.hashes) | set(test.hashes) == set(everything.hashes)
    assert not set(train.hashes) & set(test.hashes)
    assert (everything.items.dtype, everything.items.min(), everything.items.max()) == (np.uint8, 0, 255)
    assert everything.class_names == tuple("0123456789")
    assert np.bincount(test.labels).min() > 30
    with refused("no part 'val'", "digits#test"):
        open_dataset("digits#val")


def test_digits_without_scikit_learn_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with refused("scikit-learn", "pip install 'dyce-export[demo]'"):
        open_dataset("digits")


@pytest.mark.parametrize("name", ["missing", "missing.npz", "missing#train", "data.csv", "empty", "a.png#train"])
def test_sources_that_hold_no_pictures_are_refused(tmp_path, name):
    (tmp_path / "data.csv").touch()
    (tmp_path / "empty").mkdir()
    save(tmp_path / "a.png")
    expected = {"data.csv": "not a kind of data", "empty": "found no pictures"}.get(name, "no such file or folder")
    with refused(expected):
        open_dataset(str(tmp_path / name))


def test_a_folder_may_have_a_hash_sign_in_its_name(tmp_path):
    save(tmp_path / "set#1" / "a.png")
    assert len(open_dataset(str(tmp_path / "set#1"))) == 1


# --- use -------------------------------------------------------------------------------------------------------------


def test_one_class_is_enough_to_run_but_not_to_fit(tmp_path):
    dataset = open_dataset(class_folders(tmp_path, dog=3), class_names=["cat", "dog"])
    assert dataset.labels.tolist() == [1, 1, 1]
    with refused(r"only one class \(1\)"):
        require_classes(dataset)


def test_hashes_follow_content_not_name_or_place(tmp_path):
    first, copy, other = save(tmp_path / "a.png"), save(tmp_path / "b.png"), save(tmp_path / "c.png", seed=1)
    hashes = open_dataset(tmp_path).hashes
    assert hashes.dtype == np.uint64
    assert hashes[0] == hashes[1] != hashes[2]
    assert np.array_equal(Dataset("turned", [other, copy, first]).hashes, hashes[::-1])
    assert hashes[0] == int.from_bytes(hashlib.sha256(first.read_bytes()).digest()[:8], "little")


def test_arrays_of_the_same_bytes_and_another_shape_have_other_hashes():
    flat = np.zeros((1, 2, 8), np.uint8)
    assert Dataset("a", flat).hashes[0] != Dataset("b", flat.reshape(1, 4, 4)).hashes[0]


def test_a_file_that_vanished_is_named(tmp_path):
    dataset = Dataset("gone", [tmp_path / "gone.png"])
    with refused(r"gone\.png: cannot be read"):
        _ = dataset.hashes
