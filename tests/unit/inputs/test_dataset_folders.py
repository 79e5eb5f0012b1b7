"""What is found in folders: links, circles, litter, pipes, and names that are no text."""

import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dyce_runtime.bundle.manifest import Preprocessing
from dyce_runtime.errors import DataError
from dyce_runtime.inputs import dataset_folders
from dyce_runtime.inputs.datasets import open_dataset
from dyce_runtime.inputs.preprocessing import preprocess

RGB = Preprocessing(resize=8, crop=(8, 8), interpolation="bilinear", mean=(0.5,) * 3, std=(0.5,) * 3)


def save(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path, "PNG")
    return path


def names(folder: Path) -> list[str]:
    return [str(item.relative_to(folder)) for item in open_dataset(folder).items]


@pytest.mark.timeout(60)
def test_links_in_a_circle_are_followed_once(tmp_path: Path):
    save(tmp_path / "a.png"), save(tmp_path / "sub" / "b.png")
    for number in range(8):
        (tmp_path / "sub" / f"here{number}").symlink_to(".")
        (tmp_path / "sub" / f"above{number}").symlink_to("..")
    (tmp_path / "sub" / "self").symlink_to("self")
    found = dataset_folders.files_below(tmp_path)[0]
    assert found == [tmp_path / "a.png", tmp_path / "sub" / "b.png"]


def test_a_link_to_the_folder_above_gives_a_class_no_pictures_of_others(tmp_path: Path):
    save(tmp_path / "data" / "cat" / "a.png")
    save(tmp_path / "elsewhere" / "b.png")
    (tmp_path / "data" / "dog").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "all").symlink_to(tmp_path / "data")
    dataset = open_dataset(tmp_path / "data", class_names=["cat", "dog"])
    assert [(path.name, label) for path, label in zip(dataset.items, dataset.labels, strict=True)] == [
        ("a.png", 0),
        ("b.png", 1),
    ]


def test_class_folders_and_pictures_may_be_links(tmp_path: Path):
    for name in ("cat", "dog"):
        save(tmp_path / "stored" / name / "a.png")
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / name).symlink_to(tmp_path / "stored" / name)
    (tmp_path / "stored" / "dog" / "b.png").symlink_to(tmp_path / "stored" / "cat" / "a.png")
    dataset = open_dataset(tmp_path / "data", class_names=["cat", "dog"])
    assert dataset.labels.tolist() == [0, 1, 1]
    assert dataset.check() is dataset


def test_two_classes_may_share_a_folder_by_links(tmp_path: Path):
    save(tmp_path / "shared" / "a.png")
    for name in ("cat", "dog"):
        save(tmp_path / "data" / name / "own.png")
        (tmp_path / "data" / name / "more").symlink_to(tmp_path / "shared")
    assert open_dataset(tmp_path / "data", class_names=["cat", "dog"]).labels.tolist() == [0, 0, 1, 1]


def test_what_file_managers_leave_is_not_there(tmp_path: Path):
    save(tmp_path / "cat" / "a.png")
    for litter in (".DS_Store", "._a.png", "Thumbs.db", "desktop.ini", "@eaDir/a.png", ".ipynb_checkpoints/a.png"):
        save(tmp_path / "cat" / litter)
        save(tmp_path / litter)
    save(tmp_path / "__MACOSX" / "cat" / "._a.png")
    dataset = open_dataset(tmp_path, class_names=["cat"])
    assert dataset.items == [tmp_path / "cat" / "a.png"]
    assert dataset.skipped == 0


def test_pictures_beside_class_folders_are_mentioned(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    save(tmp_path / "cat" / "a.png"), save(tmp_path / "loose.png")
    with caplog.at_level(logging.WARNING, "dyce_runtime"):
        assert len(open_dataset(tmp_path, class_names=["cat"])) == 1
    assert "1 pictures beside the class folders are left out: loose.png" in caplog.text


def test_an_empty_class_folder_is_a_class_without_pictures(tmp_path: Path):
    save(tmp_path / "cat" / "a.png")
    (tmp_path / "dog").mkdir()
    dataset = open_dataset(tmp_path, class_names=["cat", "dog"])
    assert (dataset.labels.tolist(), dataset.class_names) == ([0], ("cat", "dog"))


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "nothing", "itself"])
@pytest.mark.timeout(60)
def test_what_is_no_file_is_refused_and_never_waited_for(tmp_path: Path, kind: str):
    path = tmp_path / "a.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to({"device": "/dev/zero", "nothing": "nowhere", "itself": "a.png"}[kind])
    with pytest.raises(DataError, match=r"a\.png"):
        preprocess(path, RGB)
    if kind != "folder":
        dataset = open_dataset(tmp_path)
        with pytest.raises(DataError, match=r"none of 1 pictures fits: .*a\.png"):
            dataset.check(RGB)
        with pytest.raises(DataError, match=r"a\.png: cannot be read"):
            _ = dataset.hashes


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save(tmp_path / "cat" / "a.png")
    scan = os.scandir

    def forbidden(path):
        if str(path).endswith("cat"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    with pytest.raises(DataError, match=r"cat: cannot be listed \(Permission denied\)"):
        open_dataset(tmp_path, class_names=["cat"])


@pytest.mark.parametrize("raw", [b"caf\xe9.png", b"new\nline.png", b"a[/x].png", b"\x1b[31m.png", b" .png", b"-rf.png"])
def test_names_that_are_no_text_are_names(tmp_path: Path, raw: bytes):
    name = os.fsdecode(raw)
    save(tmp_path / name / name)
    dataset = open_dataset(tmp_path, class_names=[name]).check(RGB)
    assert (len(dataset), dataset.class_names) == (1, (name,))
    assert preprocess(dataset.images([0]), RGB).shape == (1, 3, 8, 8)
    assert len(dataset.hashes) == 1
    (tmp_path / name / name).write_bytes(b"")
    with pytest.raises(DataError, match="cannot be read as a picture"):
        dataset.check(RGB)
