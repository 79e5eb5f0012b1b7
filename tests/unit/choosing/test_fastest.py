"""Which target and which precision run a bundle where nobody says: the fastest that computes what it should."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from dyce_runtime import DyceError, load, open_bundle
from dyce_runtime.bundle.manifest import Lowering
from dyce_runtime.bundle.reader import CONFIGURATIONS, PRECISIONS
from dyce_runtime.errors import TargetError
from dyce_runtime.execution.contracts import PieceSpec, TargetSpec
from dyce_runtime.execution.memory import TensorLife
from dyce_runtime.targets import registry, trial
from dyce_targets.cpu.host_context import HostDevice
from dyce_targets.cpu.onnxruntime_cpu import OnnxRuntimeCpu
from tests.bundles import finish, make_bundle, with_vectors


class Engine(OnnxRuntimeCpu):
    """onnxruntime under another name, slower by the clock of the tests, or with another bundle's weights.

    Attributes:
        now: seconds on the clock of all engines; a call turns it by a millisecond and the delay.
    """

    now = 0.0

    def __init__(self, name: str, delay: float = 0.0, reads: Path | None = None) -> None:
        self.name, self.delay, self.reads = name, delay, reads
        self.opened = 0

    def available(self) -> str | None:
        return None

    def version(self) -> str:
        return "1"

    def _open(self, pieces: Sequence[PieceSpec], tensors: Sequence[TensorLife], spec: TargetSpec) -> HostDevice:
        self.opened += 1
        if self.reads is not None:
            folder = self.reads
            pieces = [
                dataclasses.replace(piece, path=folder / piece.path.parent.name / piece.path.name) for piece in pieces
            ]
        device = super()._open(pieces, tensors, spec)
        context = device.context

        def late(rows: int) -> Any:
            Engine.now += 0.001 + self.delay
            return context(rows)

        device.context = late  # type: ignore[method-assign]
        return device


class Broken(Engine):
    """Available, and unable to open anything."""

    def _open(self, pieces: Sequence[PieceSpec], tensors: Sequence[TensorLife], spec: TargetSpec) -> HostDevice:
        raise TargetError("out of device memory")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Engine]:
    """Targets by name, all that there are; and a cache of one's own."""
    monkeypatch.delenv(registry.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(trial, "time", SimpleNamespace(perf_counter=lambda: Engine.now, sleep=lambda _: None))
    known: dict[str, Engine] = {}
    monkeypatch.setattr(registry, "names", lambda: sorted(known))
    monkeypatch.setattr(registry, "get", known.__getitem__)
    return known


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return with_vectors(make_bundle(tmp_path / "model.dyce"))


@pytest.fixture
def other_weights(bundle: Path, tmp_path: Path) -> Path:
    """The same files with one convolution a little stronger."""
    path = shutil.copytree(bundle, tmp_path / "other.dyce")
    for file in (path / "segments/segment_02.onnx", path / "spans/full.onnx"):
        model = onnx.load(file)
        weight = next(tensor for tensor in model.graph.initializer if tensor.name == "conv2")
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.01), weight.name))
        onnx.save(model, file)
    return path


def test_the_fastest_is_taken_and_remembered(installed: dict[str, Engine], bundle: Path) -> None:
    installed |= {"a_slow": Engine("a_slow", 0.005), "b_quick": Engine("b_quick")}
    with load(bundle) as session:
        assert session.target.name == "b_quick"
    assert [engine.opened for engine in installed.values()] == [1, 2]
    installed["b_quick"].delay = 0.01  # nothing is measured again
    with load(bundle) as session:
        assert session.target.name == "b_quick"
    assert [engine.opened for engine in installed.values()] == [1, 3]


def test_what_is_remembered_holds_for_the_same_circumstances_only(
    installed: dict[str, Engine], bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed |= {"a": Engine("a", 0.005), "b": Engine("b")}
    load(bundle).close()
    installed["a"].delay, installed["b"].delay = 0.0, 0.005
    with load(bundle, threads=1) as session:
        assert session.target.name == "a"
    monkeypatch.setattr(Engine, "version", lambda self: "2")
    with load(bundle) as session:
        assert session.target.name == "a"


def test_an_engine_that_computes_something_else_is_left_out(
    installed: dict[str, Engine], bundle: Path, other_weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    installed |= {"quick": Engine("quick", reads=other_weights), "right": Engine("right", 0.003)}
    with caplog.at_level("INFO", "dyce_runtime"), load(bundle) as session:
        assert session.target.name == "right"
    assert "left out: quick float32: its logits are" in caplog.text


def test_an_engine_that_does_not_open_is_left_out(installed: dict[str, Engine], bundle: Path) -> None:
    installed |= {"broken": Broken("broken"), "right": Engine("right")}
    with load(bundle) as session:
        assert session.target.name == "right"


def test_if_none_computes_what_it_should_every_reason_is_told(
    installed: dict[str, Engine], bundle: Path, other_weights: Path
) -> None:
    installed |= {"broken": Broken("broken"), "wrong": Engine("wrong", reads=other_weights)}
    with pytest.raises(TargetError, match=r"broken float32: out of device memory; wrong float32: its logits are"):
        load(bundle)


def test_a_named_target_is_taken_unmeasured(
    installed: dict[str, Engine], bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed |= {"a": Engine("a", 0.005), "b": Engine("b")}
    with load(bundle, "a") as session:
        assert session.target.name == "a"
    monkeypatch.setenv(registry.VARIABLE, "a")
    with load(bundle) as session:
        assert session.target.name == "a"
    assert installed["b"].opened == 0


def test_without_test_vectors_the_first_that_works_is_taken(installed: dict[str, Engine], tmp_path: Path) -> None:
    installed |= {"a": Engine("a", 0.005), "b": Engine("b")}
    with load(make_bundle(tmp_path / "bare.dyce")) as session:
        assert session.target.name == "a"
    assert installed["a"].opened == 1


def test_without_targets_it_says_how_to_get_one(installed: dict[str, Engine], bundle: Path) -> None:
    with pytest.raises(TargetError, match="no target is available") as caught:
        load(bundle)
    assert "pip install" in str(caught.value.hint)


def in_its_place(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        file.unlink()
        make(file)

    return damage


DAMAGES = {
    "half": lambda file: file.write_bytes(b"{"),
    "a list": lambda file: file.write_bytes(b"[]"),
    "of another machine": lambda file: file.write_bytes(b'{"machine": "gone"}'),
    "deep": lambda file: file.write_bytes(b'{"a":' * 100_000),
    "binary": lambda file: file.write_bytes(bytes(range(256))),
    "a FIFO": in_its_place(os.mkfifo),
    "a device": in_its_place(lambda file: file.symlink_to("/dev/zero")),
    "a broken link": in_its_place(lambda file: file.symlink_to("nowhere")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_cache_that_cannot_be_read_is_measured_again(
    installed: dict[str, Engine], bundle: Path, tmp_path: Path, damage: str
) -> None:
    installed |= {"a": Engine("a", 0.005), "b": Engine("b")}
    load(bundle).close()
    (file,) = (tmp_path / "cache").rglob("fastest.json")
    DAMAGES[damage](file)
    with load(bundle) as session:
        assert session.target.name == "b"
    assert "b float32" in json.loads(file.read_text()).values()


def test_a_folder_in_place_of_the_cache_costs_a_measurement_only(
    installed: dict[str, Engine], bundle: Path, tmp_path: Path
) -> None:
    installed |= {"a": Engine("a", 0.005), "b": Engine("b")}
    load(bundle).close()
    (file,) = (tmp_path / "cache").rglob("fastest.json")
    file.unlink()
    (file / "inside").mkdir(parents=True)
    with load(bundle) as session:
        assert session.target.name == "b"


def test_what_was_remembered_and_broke_since_is_measured_again(installed: dict[str, Engine], bundle: Path) -> None:
    installed |= {"a": Engine("a", 0.005), "b": Engine("b")}
    load(bundle).close()
    installed["b"] = Broken("b")
    with load(bundle) as session:
        assert session.target.name == "a"


def test_a_cache_that_cannot_be_written_costs_a_measurement_only(
    installed: dict[str, Engine], bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    installed |= {"a": Engine("a", 0.005), "b": Engine("b")}
    (tmp_path / "cache").write_text("a file")
    with load(bundle) as session:
        assert session.target.name == "b"
    assert "cannot be stored" in caplog.text


@pytest.fixture
def two_precisions(bundle: Path) -> Path:
    """The bundle with itself inside, as if that were another precision."""
    inner = bundle / PRECISIONS / "uint8"
    shutil.copytree(bundle, inner, ignore=shutil.ignore_patterns(PRECISIONS))
    lowering = Lowering((), 8, 1e-4, 1.0, 0.9, 0.9, 8)
    finish(inner, precision="uint8", lowering=lowering)
    finish(bundle, precisions=("uint8",))
    assert (inner / CONFIGURATIONS).is_file()
    return bundle


def test_an_engine_in_which_samples_leave_elsewhere_than_recorded_is_left_out(
    installed: dict[str, Engine], two_precisions: Path
) -> None:
    installed |= {"a_quick": Engine("a_quick"), "b_slow": Engine("b_slow", 0.003)}
    inner = two_precisions / PRECISIONS / "uint8"
    for share, chosen in ((0.011, "b_slow"), (0.009, "a_quick")):
        finish(inner, lowering=Lowering((), 8, 1e-4, 1.0, 0.9, 0.9, 8, exit_mismatch_rate={"a_quick": share}))
        finish(two_precisions)
        with load(two_precisions, precision="uint8") as session:
            assert session.target.name == chosen


def test_precisions_take_part_where_that_is_asked_for(
    installed: dict[str, Engine], two_precisions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = installed["a"] = Engine("a")
    usual = engine._open

    def slower_in_float32(pieces: Sequence[PieceSpec], tensors: Sequence[TensorLife], spec: TargetSpec) -> HostDevice:
        engine.delay = 0.0 if "uint8" in str(pieces[0].path) else 0.005
        return usual(pieces, tensors, spec)

    monkeypatch.setattr(engine, "_open", slower_in_float32)
    with load(two_precisions, precision="auto") as session:
        assert session.manifest.precision == "uint8"
    with load(two_precisions, "a", precision="auto") as session:
        assert session.manifest.precision == "uint8"
    with load(two_precisions) as session:
        assert session.manifest.precision == "float32", "never changed without being asked"
    with load(two_precisions, "a") as session:
        assert session.manifest.precision == "float32"
    with load(two_precisions, precision="float32") as session:
        assert session.manifest.precision == "float32"
    with load(two_precisions, "a", precision="uint8") as session:
        assert session.bundle.path == open_bundle(two_precisions).precision("uint8").path
    with pytest.raises(DyceError, match="has no int8; it has float32, uint8"):
        load(two_precisions, precision="int8")
