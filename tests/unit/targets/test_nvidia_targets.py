"""Which engines a GPU loads, and which are built for it first. A double stands for the GPU; the engines are real."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dyce_export.cli.commands.compile import parse_target
from dyce_runtime import load, open_bundle
from dyce_runtime.bundle.cache import cache_folder
from dyce_runtime.errors import TargetError
from dyce_runtime.execution.contracts import PieceSpec, TargetSpec
from dyce_runtime.targets import registry
from dyce_targets.nvidia import builder, cuda
from dyce_targets.nvidia.products import RTX
from dyce_targets.nvidia.targets import TensorRtRtx
from tests.bundles import expected, finish, make_images
from tests.gpu_double import HostExecutor

pytestmark = pytest.mark.skipif(RTX.missing() is not None, reason=str(RTX.missing()))
PIECES = {"segment_00", "segment_01", "segment_02", "exit_03_linear", "exit_07_linear", "full"}


class Gpu:
    """A GPU of some compute capability.

    Attributes:
        loaded: the engines that were opened last, by piece.
        built: pieces whose engines were built.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.loaded: Mapping[str, Path] = {}
        self.built: list[str] = []
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr(cuda, "missing", lambda: None)
        monkeypatch.setattr(cuda, "compute_capability", lambda: self.capability)
        monkeypatch.setattr("dyce_targets.nvidia.targets.TensorRtExecutor", self.open)
        build = builder.build

        def counted(product: Any, piece: PieceSpec, spec: TargetSpec, folder: Path) -> bytes:
            self.built.append(piece.id)
            return build(product, piece, spec, folder)

        monkeypatch.setattr("dyce_targets.nvidia.targets.build", counted)
        self.capability = "sm86"

    def open(self, product: Any, pieces: Sequence[PieceSpec], engines: Mapping[str, Path]) -> HostExecutor:
        self.loaded = engines
        return HostExecutor(pieces)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Gpu:
    return Gpu(monkeypatch, tmp_path)


def test_engines_that_came_with_the_bundle_are_taken(bundle_copy: Path, gpu: Gpu):
    bundle = open_bundle(bundle_copy)
    for piece in bundle.piece_specs(sorted(PIECES)):
        TensorRtRtx().compile(piece, TargetSpec(devices=("sm86", "sm89")), bundle_copy / "engines/rtx")
    finish(bundle_copy)
    gpu.built.clear()
    with load(bundle_copy, "rtx") as session:
        session.use("fast")
        images = make_images(20)
        np.testing.assert_array_equal(session(images).exit, expected(images, session.configuration).exit)
    assert gpu.built == []
    assert set(gpu.loaded) == PIECES
    assert all(path.parent == bundle_copy / "engines/rtx" for path in gpu.loaded.values())


def test_what_is_missing_for_this_gpu_is_built_once_into_the_users_cache(bundle_copy: Path, gpu: Gpu):
    bundle = open_bundle(bundle_copy)
    for piece in bundle.piece_specs(sorted(PIECES)):
        TensorRtRtx().compile(piece, TargetSpec(devices=("sm89",)), bundle_copy / "engines/rtx")
    finish(bundle_copy)
    bundle = open_bundle(bundle_copy)
    gpu.built.clear()
    for built in (PIECES, set()):
        gpu.built.clear()
        load(bundle_copy, "rtx").close()
        assert set(gpu.built) == built
        assert {path.parent for path in gpu.loaded.values()} == {cache_folder(bundle, "rtx")}
    gpu.built.clear()
    load(bundle_copy, "rtx", max_batch=2).close()
    assert gpu.built == [], "what takes more samples serves"
    load(bundle_copy, "rtx", max_batch=128).close()
    assert set(gpu.built) == PIECES


@pytest.mark.parametrize(("device", "capability", "most"), [("rtx-40", "sm89", 32), ("rtx-30", "sm86", 32)])
def test_what_was_compiled_for_a_device_is_what_loading_takes(
    bundle_copy: Path, gpu: Gpu, device: str, capability: str, most: int
):
    target, spec = parse_target(device)
    for piece in open_bundle(bundle_copy).piece_specs(sorted(PIECES)):
        registry.get(target).compile(piece, spec, bundle_copy / "engines/rtx")
    finish(bundle_copy)
    gpu.built.clear()
    gpu.capability = capability
    with load(bundle_copy, target) as session:
        assert (gpu.built, session.device.max_rows, session.max_batch) == ([], most, most)
        images = make_images(most + 9)
        session.use("fast")
        np.testing.assert_array_equal(session(images).exit, expected(images, session.configuration).exit)
    with load(bundle_copy, target, max_batch=5) as session:
        assert (gpu.built, session.device.max_rows) == ([], 5)


def test_engines_of_another_version_are_built_again(bundle_copy: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch):
    load(bundle_copy, "rtx").close()
    gpu.built.clear()
    monkeypatch.setattr(RTX.load(), "__version__", "99.0")
    load(bundle_copy, "rtx").close()
    assert set(gpu.built) == PIECES


def test_without_a_gpu_the_target_says_what_is_missing(bundle_copy: Path):
    reason = cuda.missing()
    if reason is None:
        pytest.skip("there is a GPU here")
    assert registry.get("rtx").compiles() is None
    with pytest.raises(TargetError, match="rtx: "):
        load(bundle_copy, "rtx")


def test_engines_without_a_folder_for_them_are_refused(tiny_bundle: Path, gpu: Gpu):
    bundle = open_bundle(tiny_bundle)
    pieces = bundle.piece_specs(["segment_00"])
    with pytest.raises(TargetError, match="found no folder for that of segment_00") as caught:
        TensorRtRtx().open(pieces, bundle.tensor_lives([piece.id for piece in pieces]), TargetSpec())
    assert "dyce_runtime.load" in caught.value.hint
