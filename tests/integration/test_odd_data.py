"""Exports from data that is not quite in order: some of it cannot be decoded, or has other channels than usual."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import nn

import dyce_export
import dyce_runtime
from dyce_calibration.records import Records
from dyce_export.cascade import export_source
from dyce_export.options import Options
from dyce_export.sources.source import from_module
from dyce_runtime.bundle.reader import RECORDS, open_bundle
from dyce_runtime.errors import DataError
from dyce_runtime.inputs.datasets import open_dataset
from tests.integration.small import ANY_LABELS, labelled, tiny
from tests.models import INPUT_SIZE, Convolutions, build
from tests.unit.cli.command import dyce, dyce_here

pytestmark = pytest.mark.usefixtures("same_graphs_once")

COUNT = 400


def pictures(folder: Path, channels: int = 3) -> Path:
    """Noise, without labels: enough to run everything, not to learn anything."""
    folder.mkdir()
    for index, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (COUNT, 16, 16, channels), np.uint8)):
        if channels in (3, 4):
            Image.fromarray(pixels).save(folder / f"{index:03}.png")
        else:
            np.save(folder / f"{index:03}.npy", pixels)
    return folder


def damage(folder: Path) -> list[str]:
    """Three pictures, of which one breaks off in the middle; the names. Test vectors would hold the first and last."""
    names = ["000.png", "200.png", f"{COUNT - 1:03}.png"]
    whole = (folder / names[1]).read_bytes()
    (folder / names[0]).write_bytes(b"")
    (folder / names[1]).write_bytes(whole[: len(whole) // 2])
    (folder / names[2]).write_bytes(b"no picture")
    return names


def test_what_cannot_be_decoded_is_left_out_of_everything(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    data = pictures(tmp_path / "data")
    names = damage(data)
    with caplog.at_level(logging.WARNING):
        source = from_module(build(Convolutions), input_size=INPUT_SIZE)
        saver = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(12, 5))
        options = Options(precisions=("uint8",), allow_suspicious=True)  # the saver answers something else
        made = export_source(source, ["2"], tmp_path / "b.dyce", savers=[saver], data=data, options=options)
    said = [record.getMessage() for record in caplog.records if "no pictures" in record.getMessage()]
    assert len(said) == 1
    assert "3 of 400 files are no pictures that can be read" in said[0]
    assert all(name in said[0] for name in names)
    whole = open_dataset(data).check()
    assert len(whole) == COUNT - len(names)
    bundle = open_bundle(made.path)
    records = Records.load(bundle.file(RECORDS))
    assert set(records.hashes.tolist()) < set(whole.hashes.tolist())
    assert sum(bundle.manifest.splits.samples.values()) == len(whole)
    assert bundle.file("report.html").is_file()
    assert bundle.manifest.precisions == ("uint8",)


def test_too_much_that_cannot_be_decoded_is_said_before_anything_is_computed(tmp_path: Path):
    data = pictures(tmp_path / "data")
    damage(data)
    for index in range(1, 4):
        (data / f"{index:03}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"6 of [0-9]+ files are no pictures that can be read") as caught:
        dyce_export.export(build(Convolutions), [2], tmp_path / "b.dyce", input_size=INPUT_SIZE, data=data)
    assert "000.png: cannot be read as a picture" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_pictures_with_two_labels_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Once more with the same label is no contradiction."""
    with np.load(labelled(tmp_path / "data.npz")) as stored:
        images, labels = stored["images"], stored["labels"]
    again, others = images[:7], images[20:23]
    np.savez(
        tmp_path / "odd.npz",
        images=np.concatenate([images, again, others]),
        labels=np.concatenate([labels, labels[:7], (labels[20:23] + 1) % 5]),
    )
    with caplog.at_level(logging.WARNING):
        export_source(tiny(), ["2"], tmp_path / "b.dyce", data=tmp_path / "odd.npz", options=ANY_LABELS)
    [said] = [record.getMessage() for record in caplog.records if "another label" in record.getMessage()]
    assert said.endswith("odd.npz: 3 pictures occur again with another label")


class Channels(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, 3, 1)
        self.rest = build(Convolutions)

    def forward(self, x):  # type: ignore[no-untyped-def]
        return self.rest(self.first(x))


FACTORY = """
import torch
from tests.integration.test_odd_data import Channels
torch.manual_seed(0)
four, five = Channels(4), Channels(5)
"""


@pytest.mark.parametrize(("channels", "name", "code"), [(4, "four", 0), (3, "four", 1), (5, "five", 0)])
def test_a_dry_run_and_the_export_agree_about_channels(tmp_path: Path, channels: int, name: str, code: int):
    (tmp_path / "made.py").write_text(FACTORY)
    pictures(tmp_path / "data", channels)
    size = f"{4 if name == 'four' else 5},16,16"
    words = (
        "--model",
        f"made:{name}",
        "--input-size",
        size,
        "--exits",
        "1",
        "--data",
        "data",
        "-o",
        "b.dyce",
        "--json",
    )
    dry, real = (dyce_here("export", *words, *more, cwd=tmp_path) for more in (["--dry-run"], []))
    assert (dry.returncode, real.returncode) == (code, code), dry.stderr + real.stderr
    if code:
        assert json.loads(dry.stdout)["error"] == json.loads(real.stdout)["error"]
        assert "channels" in json.loads(dry.stdout)["error"]["message"]
        return
    again = dyce_here("export", *words[:-1], "--dry-run", cwd=tmp_path)  # the bundle is there by now
    assert (again.returncode, "exists, so it could be written with --force" in again.stdout) == (0, True)
    ran = dyce("run", "b.dyce", "data", "--limit", "9", "--target", "onnxruntime", "--json", cwd=tmp_path)
    labels = [result["label"] for result in json.loads(ran.stdout)["results"]]
    with dyce_runtime.load(tmp_path / "b.dyce", "onnxruntime", threads=1) as session:
        paths = sorted((tmp_path / "data").iterdir())[:9]
        arrays = [np.load(path) if channels == 5 else np.asarray(Image.open(path)) for path in paths]
        assert session(session.preprocess(arrays)).label.tolist() == labels
        assert session(session.preprocess([array / np.float32(255) for array in arrays])).label.tolist() == labels
