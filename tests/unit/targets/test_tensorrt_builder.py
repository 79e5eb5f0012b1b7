"""What TensorRT is asked for, above a double of its builder: it does not install where this is developed."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dyce_runtime import open_bundle
from dyce_runtime.errors import BundleError, TargetError
from dyce_runtime.execution.contracts import PieceSpec, TargetSpec
from dyce_targets.nvidia import builder
from dyce_targets.nvidia.products import TENSORRT, Product


class Cache:
    """Timings: a version, and how many pieces were timed."""

    def __init__(self, content: bytes) -> None:
        self.version, _, count = (content or b"10.3:0").decode().partition(":")
        self.count = int(count)

    def serialize(self) -> bytes:
        return f"{self.version}:{self.count}".encode()


class TensorRt:
    """As much of the module as a build uses, of one version.

    Attributes:
        asked: what the last build was asked for.
    """

    __name__ = "tensorrt"

    def __init__(self, version: str = "10.3", *, parses: bool = True, builds: bool = True) -> None:
        self.__version__, self.parses, self.builds = version, parses, builds
        self.asked: dict[str, Any] = {}
        self.BuilderFlag = SimpleNamespace(TF32="tf32")
        self.MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
        # In version 11 networks are typed strongly without being told.
        self.NetworkDefinitionCreationFlag = SimpleNamespace(**({"STRONGLY_TYPED": 1} if version < "11" else {}))
        self.ILogger = type("ILogger", (), {"INTERNAL_ERROR": 0, "ERROR": 1})
        self.Dims = tuple

    def Builder(self, logger: Any) -> TensorRt:
        self.logger, self.asked = logger, {"profiles": []}
        return self

    def create_network(self, flags: int) -> object:
        self.asked["flags"] = flags
        return object()

    def OnnxParser(self, network: object, logger: Any) -> Any:
        error = SimpleNamespace(
            node_operator=lambda: "Col2Im", node_name=lambda: "fold", desc=lambda: "no importer", code=lambda: 8
        )
        return SimpleNamespace(parse_from_file=lambda path: self.parses, num_errors=1, get_error=lambda index: error)

    def create_builder_config(self) -> TensorRt:
        return self

    def clear_flag(self, flag: str) -> None:
        self.asked["cleared"] = flag

    def set_memory_pool_limit(self, pool: str, size: int) -> None:
        self.asked[pool] = size

    def create_optimization_profile(self) -> Any:
        shapes: dict[str, Any] = {}
        return SimpleNamespace(shapes=shapes, set_shape=lambda name, *sizes: shapes.__setitem__(name, sizes))

    def add_optimization_profile(self, profile: Any) -> None:
        self.asked["profiles"].append(profile.shapes)

    def create_timing_cache(self, content: bytes) -> Cache | None:
        try:
            return Cache(content) if content else Cache(f"{self.__version__}:0".encode())
        except ValueError:
            return None

    def set_timing_cache(self, cache: Cache, *, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch, "timings of another GPU would choose slow tactics"
        if cache.version != self.__version__:
            return False
        self.asked["timed before"] = cache.count
        self.cache = cache
        return True

    def build_serialized_network(self, network: object, config: object) -> bytes | None:
        if not self.builds:
            self.logger.log(1, "Requested amount of GPU memory could not be allocated")
            return None
        self.cache.count += 1
        return b"engine"


@pytest.fixture
def piece(tiny_bundle: Path) -> PieceSpec:
    return open_bundle(tiny_bundle).piece_specs(["segment_01"])[0]


def build(trt: TensorRt, piece: PieceSpec, folder: Path, spec: TargetSpec | None = None) -> bytes:
    builder._loggers.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Product, "load", lambda self: trt)
        return builder.build(TENSORRT, piece, spec or TargetSpec(), folder)


def test_networks_are_typed_strongly_without_tensorfloat(piece: PieceSpec, tmp_path: Path) -> None:
    for version, flags in (("10.3", 2), ("11.4", 0)):
        trt = TensorRt(version)
        assert build(trt, piece, tmp_path / version) == b"engine"
        assert (trt.asked["flags"], trt.asked["cleared"]) == (flags, "tf32")


def test_there_is_a_profile_for_one_sample_and_one_for_many(piece: PieceSpec, tmp_path: Path) -> None:
    trt = TensorRt()
    build(trt, piece, tmp_path, TargetSpec(max_batch=4))
    name, shape = piece.inputs[0].name, tuple(piece.inputs[0].shape[1:])
    one, four = (1, *shape), (4, *shape)
    assert trt.asked["profiles"] == [{name: (one, one, one)}, {name: (one, four, four)}]
    build(trt, piece, tmp_path, TargetSpec(max_batch=1))
    assert len(trt.asked["profiles"]) == 1


def test_scratch_memory_is_limited_where_a_device_says_so(piece: PieceSpec, tmp_path: Path) -> None:
    trt = TensorRt()
    build(trt, piece, tmp_path)
    assert "workspace" not in trt.asked
    build(trt, piece, tmp_path, TargetSpec(workspace_mib=512))
    assert trt.asked["workspace"] == 512 * 2**20


def test_timings_are_kept_for_the_next_piece(piece: PieceSpec, tmp_path: Path) -> None:
    for before in range(3):
        trt = TensorRt()
        build(trt, piece, tmp_path / "engines")
        assert trt.asked["timed before"] == before


@pytest.mark.parametrize("stale", [b"9.9:7", b"damaged"])
def test_timings_of_another_version_or_damaged_are_replaced(piece: PieceSpec, tmp_path: Path, stale: bytes) -> None:
    (tmp_path / builder.TIMING).write_bytes(stale)
    trt = TensorRt()
    build(trt, piece, tmp_path)
    assert trt.asked["timed before"] == 0
    assert (tmp_path / builder.TIMING).read_bytes() == b"10.3:1"


def test_timings_that_cannot_be_kept_cost_time_only(
    piece: PieceSpec, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "taken").write_text("a file")
    with caplog.at_level(logging.WARNING, "dyce_targets"):
        assert build(TensorRt(), piece, tmp_path / "taken") == b"engine"
    assert "timing.cache cannot be written" in caplog.text


def test_what_the_builder_says_is_told_with_what_to_do(piece: PieceSpec, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"TensorRT 10\.3 could not build segment_01: Requested amount") as caught:
        build(TensorRt(builds=False), piece, tmp_path)
    assert "--max-batch" in str(caught.value.hint)
    with pytest.raises(
        BundleError, match=r"the operator Col2Im \(node fold\) is not supported: no importer"
    ) as refused:
        build(TensorRt(parses=False), piece, tmp_path)
    assert "other targets" in str(refused.value.hint)
