"""An export that cannot be: its message, its exit code, and nothing left behind."""

from __future__ import annotations

import errno
import shutil
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import dyce_export
from dyce_export import cascade, pipeline
from dyce_export.calibrate import check_amount
from dyce_export.cascade import export_source
from dyce_export.graph import exit_points, onnx_graphs
from dyce_export.options import Options
from dyce_export.pipeline import Export
from dyce_export.progress import Progress
from dyce_runtime.bundle.reader import open_bundle
from dyce_runtime.errors import (
    CaptureError,
    DataError,
    DestinationError,
    DyceError,
    ExitPointError,
    ModelError,
    UsageError,
    VerificationError,
)
from dyce_runtime.inputs.datasets import Dataset
from tests.integration.small import ANY_LABELS, labelled, tiny
from tests.models import INPUT_SIZE, Convolutions, Wrapped, build

pytestmark = pytest.mark.usefixtures("same_graphs_once")


class Constant(Convolutions):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 1e-9 + torch.arange(5.0)


class Branching(Convolutions):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x if x.sum() > 0 else -x)


class Selective(Convolutions):
    """ONNX has no form of its last operation."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        return y - y.median(dim=1, keepdim=True).values


class Precise(Convolutions):
    """ONNX has a form of its first operation; onnxruntime has none for float64."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kernel = torch.ones(3, 1, 3, 3, dtype=torch.float64)
        return super().forward(functional.conv2d(x.double(), kernel, padding=1, groups=3).float())


def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "calibrate", lambda *_, **__: pytest.fail("heads were trained for nothing"))


def fail_to_count(monkeypatch: pytest.MonkeyPatch) -> None:
    def strange(*arguments: object) -> None:
        raise NotImplementedError("no rule for my_op\nand a graph of a thousand lines")

    monkeypatch.setattr(exit_points, "count_macs", strange)


def fail_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(onnx_graphs.ir, "save", full)


def no_space_for_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("usage", "total used free")(0, 0, 10))


def nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pass


@dataclass
class Failure:
    error: type[DyceError]
    message: str
    code: int = 1
    make: type[nn.Module] = Convolutions
    exits: tuple[str, ...] = ("2",)
    data: Callable[[Path], Path] | None = None
    options: Options = field(default_factory=Options)
    arrange: Callable[[pytest.MonkeyPatch], None] = nothing


def before_training(message: str, make: type[nn.Module]) -> Failure:
    """What is wrong with a model, said before its heads are trained on data."""
    return Failure(
        CaptureError,
        message,
        make=make,
        data=lambda path: labelled(path / "data.npz"),
        options=ANY_LABELS,
        arrange=no_training,
    )


FAILURES = {
    "an exit that is not there": Failure(ExitPointError, "no exit point 9", exits=("9",)),
    "a model that branches": Failure(CaptureError, "cannot be captured", make=Branching),
    "an operation that is counted by no rule": Failure(
        CaptureError, "no exit points can be found .* NotImplementedError: no rule for my_op$", arrange=fail_to_count
    ),
    "an operation that ONNX lacks": before_training("no ONNX form of aten.median.dim", Selective),
    "an operation that onnxruntime lacks": before_training(
        "onnxruntime cannot run the exported model: NotImplemented", Precise
    ),
    "data that is not there": Failure(DataError, "no such file", data=lambda path: path / "nowhere"),
    "too little data": Failure(
        DataError, "too few", data=lambda path: labelled(path / "few.npz", count=12), arrange=no_training
    ),
    "one class": Failure(DataError, "only one class", data=lambda path: labelled(path / "one.npz", classes=1)),
    "other classes": Failure(DataError, "model has 5 classes", data=lambda path: labelled(path / "o.npz", classes=9)),
    "no room for the features": Failure(
        DestinationError,
        "features of this data set need about",
        data=lambda path: labelled(path / "data.npz"),
        options=ANY_LABELS,
        arrange=no_space_for_features,
    ),
    "a full disk": Failure(DestinationError, "the disk of .* is full; nothing was written", arrange=fail_to_write),
    "numbers that differ": Failure(VerificationError, "verification failed", 3, options=Options(tolerance=0.0)),
    "a model that ignores its input": Failure(VerificationError, "verification is inconclusive", 3, make=Constant),
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
def test_a_failure_has_its_exit_code_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure):
    data = failure.data and failure.data(tmp_path)
    output = tmp_path / "out" / "b.dyce"
    output.parent.mkdir()
    failure.arrange(monkeypatch)
    with pytest.raises(failure.error, match=failure.message) as caught:
        export_source(tiny(failure.make), failure.exits, output, data=data, options=failure.options)
    assert caught.value.exit_code == failure.code
    assert list(output.parent.iterdir()) == []


def test_a_failed_replacement_leaves_the_old_bundle(untrained: Export, tmp_path: Path):
    old = shutil.copytree(untrained.path, tmp_path / "b.dyce")
    with pytest.raises(VerificationError):
        export_source(tiny(), ["2"], old, options=Options(force=True, tolerance=0.0))
    assert open_bundle(old).manifest == untrained.manifest
    assert [path.name for path in tmp_path.iterdir()] == ["b.dyce"]


def test_a_taken_destination_is_said_before_any_work(untrained: Export, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cascade, "capture_source", lambda *_: pytest.fail("work was done"))
    with pytest.raises(DestinationError, match="already exists"):
        export_source(tiny(), ["2"], untrained.path)


def test_force_replaces_a_bundle(untrained: Export, tmp_path: Path):
    old = shutil.copytree(untrained.path, tmp_path / "b.dyce")
    dyce_export.export(build(Convolutions), ["2"], old, input_size=INPUT_SIZE, force=True)
    assert [exit.id for exit in open_bundle(old).manifest.exits] == ["2", "final"]


def test_an_interruption_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Interrupted(Progress):
        def started(self, name: str) -> None:
            if name == "verify":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_source(tiny(), ["2"], tmp_path / "b.dyce", progress=Interrupted())
    assert list(tmp_path.iterdir()) == []


def test_val_without_data_is_not_ignored(tmp_path: Path):
    with pytest.raises(UsageError, match="val was given without data"):
        export_source(tiny(), ["2"], tmp_path / "b.dyce", val="digits#test")


def test_a_model_of_unknown_input_size_is_asked_for_it(tmp_path: Path):
    with pytest.raises(ModelError, match="size of the model's input is not known"):
        dyce_export.export(build(Convolutions), [1], tmp_path / "b.dyce")


def test_a_model_that_returns_a_tuple_is_refused(tmp_path: Path):
    with pytest.raises(CaptureError, match="returns 2 tensors"):
        dyce_export.export(build(lambda: Wrapped(lambda y: (y, y))), [1], tmp_path / "b.dyce", input_size=INPUT_SIZE)


def test_fewer_pictures_to_choose_on_than_classes_are_refused_with_what_would_do():
    pictures = np.random.default_rng(0).integers(0, 256, (300, 4, 4, 3), dtype=np.uint8)
    data = Dataset("many classes", pictures, np.arange(300) % 100)
    with pytest.raises(DataError, match=r"many classes leaves \d+ pictures to choose .* on, for 100 classes"):
        check_amount(data, None, 0)
    few = Dataset("few classes", pictures, np.arange(300) % 10)
    check_amount(few, None, 0)
    check_amount(data, few, 0)
