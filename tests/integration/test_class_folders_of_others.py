"""A user's class folders, against a model that was trained with them in some order: right answers or a clear no."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import dyce_export
import dyce_runtime
from dyce_calibration.records import Records
from dyce_export.cascade import export_cascade, prepare_cascade
from dyce_export.cli.console import run
from dyce_export.cli.main import app
from dyce_export.options import Options
from dyce_export.prepare import capture_source
from dyce_export.progress import Progress
from dyce_export.savers.resolve_saver import Savers, input_of
from dyce_export.sources.source import from_module
from dyce_runtime.bundle.reader import RECORDS, open_bundle
from dyce_runtime.errors import DyceError, SuspiciousDataError
from tests.unit.cli.command import dyce

pytestmark = pytest.mark.usefixtures("same_graphs_once")

NAMES = [str(number) for number in range(12)]
BY_STRING = {name: place for place, name in enumerate(sorted(NAMES))}  # as torchvision's ImageFolder
OWN = dict(zip(NAMES, np.random.default_rng(1).permutation(12).tolist(), strict=True))
INPUT = {"input_size": (3, 8, 8), "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 1.0}


class Brightness(nn.Module):
    """Tells twelve brightnesses apart, and numbers their names as it is told; ``channels`` widens it."""

    def __init__(self, index: Mapping[str, int], channels: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, channels, 1)
        self.blocks = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(3))
        self.fc = nn.Linear(channels, 12)
        places = torch.tensor([index[name] for name in NAMES])
        level = (torch.arange(12) * 20 + 15) / 127.5 - 1
        with torch.no_grad():
            self.stem.weight[0], self.stem.bias[0] = 1 / 3, 0
            for block in self.blocks:
                block.weight[0], block.bias[0] = 0, 0
            self.fc.weight.zero_()
            self.fc.weight[places, 0], self.fc.bias[places] = 400 * level, -200 * level**2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Channel 0 carries the mean through residual blocks."""
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x).relu()
        return self.fc(x.mean((2, 3)))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``train`` and ``val`` with class folders 0 to 11 of noisy grey pictures."""
    root, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for part, count in (("train", 25), ("val", 50)):
        for number, name in enumerate(NAMES):
            (root / part / name).mkdir(parents=True)
            for k in range(count):
                grey = np.clip(20 * number + 15 + random.normal(0, 5) + random.normal(0, 8, (8, 8, 3)), 0, 255)
                Image.fromarray(grey.astype(np.uint8)).save(root / part / name / f"{k}.png")
    return root


def export(photos: Path, output: Path, index: Mapping[str, int], exits: list[int] | None = None, **options):
    places = {"data": str(photos / "train"), "val": str(photos / "val")}
    return dyce_export.export(
        Brightness(index).eval(), [1] if exits is None else exits, output, **INPUT, **places, **options
    )


@pytest.fixture(scope="module")
def bundle(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model that was trained with torchvision's ImageFolder."""
    return export(photos, tmp_path_factory.mktemp("bundle") / "strings.dyce", BY_STRING).path


def accuracy(session: dyce_runtime.Session, photos: Path, index: Mapping[str, int]) -> float:
    files = sorted((photos / "val").glob("*/*.png"))[::5]
    found = session(session.preprocess(files)).label
    return float(np.mean(found == [index[file.parent.name] for file in files]))


def test_the_order_of_the_training_is_found_and_every_exit_speaks_it(bundle, photos):
    with dyce_runtime.load(bundle, "onnxruntime") as session:
        assert session.manifest.model.class_names == tuple(sorted(NAMES))
        for name in ("full", "fast"):
            session.use(name)
            assert accuracy(session, photos, BY_STRING) > 0.7


def test_an_order_of_its_own_stops_the_export_and_the_shown_mapping_repairs_it(photos, tmp_path):
    with pytest.raises(SuspiciousDataError) as caught:
        export(photos, tmp_path / "b.dyce", OWN)
    assert not (tmp_path / "b.dyce").exists()
    shown = dict(pair.split(" -> ") for pair in caught.value.message.partition("class: ")[2].split(", "))
    (tmp_path / "classes.json").write_text(json.dumps({name: int(place) for name, place in shown.items()}))
    made = export(photos, tmp_path / "b.dyce", OWN, classes=tmp_path / "classes.json")
    assert made.configurations.named["full"].test.accuracy > 0.7


def test_going_on_all_the_same_is_said_in_the_bundle_and_its_report(photos, tmp_path, caplog, capsys):
    numbers = np.repeat(np.arange(12), 50)
    images = 20 * numbers[:, None, None] + np.random.default_rng(0).integers(5, 25, (600, 8, 8))
    labels = np.array([OWN[str(number)] for number in numbers])
    np.savez(tmp_path / "wrong.npz", images=images.astype(np.uint8), labels=labels)
    places = {"data": str(tmp_path / "wrong.npz"), "allow_suspicious": True}
    with caplog.at_level(logging.WARNING, "dyce_export"):
        made = dyce_export.export(Brightness(BY_STRING).eval(), [1], tmp_path / "b.dyce", **INPUT, **places)
    assert made.manifest.suspicious
    assert "another order" in made.manifest.suspicious[0]
    assert "suspicious" in caplog.text
    assert "Suspicious:" in (made.path / "report.html").read_text()
    assert run(app, "dyce", ["inspect", str(made.path)]) == 0
    assert "suspicious" in capsys.readouterr().out


def test_wrong_preprocessing_is_noticed(photos, tmp_path):
    with pytest.raises(SuspiciousDataError, match=r"chance|another order") as caught:
        dyce_export.export(
            Brightness(BY_STRING).eval(),
            [1],
            tmp_path / "b.dyce",
            **{**INPUT, "mean": (0.05,) * 3, "std": (0.02,) * 3},
            data=str(photos / "train"),
        )
    assert "--mean" in caught.value.hint


@pytest.mark.parametrize("as_bundle", [False, True])
def test_a_saver_with_other_classes_is_noticed(photos, tmp_path, as_bundle):
    saver = Brightness(OWN, channels=2).eval()
    if as_bundle:
        places = {"data": str(photos / "train"), "val": str(photos / "val")}
        (tmp_path / "own.json").write_text(json.dumps(OWN))
        saver = dyce_export.export(
            saver, [1], tmp_path / "saver.dyce", **INPUT, **places, classes=tmp_path / "own.json"
        ).path
    with pytest.raises(DyceError, match="saver") as caught:
        export(photos, tmp_path / "b.dyce", BY_STRING, [], savers=[saver])
    assert "--saver-classes" in caught.value.hint
    assert not (tmp_path / "b.dyce").exists()


def test_a_mapping_of_a_savers_classes_is_applied_once(photos, tmp_path):
    """The names of the base, which are numbers, are no names of the saver."""
    base = capture_source(from_module(Brightness(BY_STRING).eval(), **INPUT), Progress())
    saver = from_module(Brightness(OWN, channels=2).eval(), like=input_of(base))
    mapping = {str(OWN[name]): BY_STRING[name] for name in NAMES}
    places = {"data": str(photos / "train"), "val": str(photos / "val")}
    cascade = prepare_cascade(base, [], Savers((saver,), mapping), **places, options=Options(), progress=Progress())
    made = export_cascade(cascade, tmp_path / "b.dyce", options=Options(), progress=Progress())
    records = Records.load(made.path / RECORDS)
    assert (records.predictions == records.labels[:, None]).mean(0).min() > 0.7


def test_a_base_that_is_a_bundle_knows_its_classes(bundle, photos, tmp_path):
    places = {"data": str(photos / "train"), "val": str(photos / "val")}
    base = open_bundle(bundle)
    cascade = prepare_cascade(
        base,
        [],
        Savers((from_module(small_saver(), like=input_of(base)),)),
        **places,
        options=Options(),
        progress=Progress(),
    )
    for dataset in (cascade.data, cascade.pictures):
        assert dataset.labels.tolist() == [BY_STRING[path.parent.name] for path in dataset.items]
    made = export_cascade(cascade, tmp_path / "c.dyce", options=Options(), progress=Progress())
    with dyce_runtime.load(made.path, "onnxruntime") as session:
        for name in session.bundle.configurations.named:
            session.use(name)
            assert accuracy(session, photos, BY_STRING) > 0.7


def test_bench_knows_the_classes_of_the_bundle_and_refuses_another_order(bundle, photos, tmp_path):
    words = ["bench", bundle, "--data", photos / "val", "--target", "onnxruntime", "--limit", "300", "--baseline"]
    document = json.loads(dyce(*map(str, words), "--json").stdout)
    assert document["batches"][0]["uncut"]["accuracy"] > 0.7
    (tmp_path / "wrong.json").write_text(json.dumps(OWN))
    done = dyce(*map(str, words), "--classes", str(tmp_path / "wrong.json"))
    assert done.returncode == 1
    assert "another order" in done.stderr


def small_saver() -> nn.Module:
    """A saver in the order of the bundle."""
    return Brightness(BY_STRING, channels=2).eval()
