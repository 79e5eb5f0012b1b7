"""onnxruntime's targets for GPUs: no silent fallback, nothing left behind. A double stands for the driver."""

from __future__ import annotations

import ctypes
import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from dyce_runtime import load, open_bundle
from dyce_runtime.errors import BundleError, TargetError
from dyce_runtime.execution.contracts import PieceSpec
from dyce_runtime.execution.memory import TensorLife
from dyce_runtime.targets import registry
from dyce_targets.nvidia import cuda
from dyce_targets.nvidia.device import GpuDevice
from dyce_targets.nvidia.onnxruntime_executor import OnnxRuntimeExecutor, Provider
from dyce_targets.nvidia.providers import OnnxRuntimeCuda, OnnxRuntimeRtx, OnnxRuntimeTensorRt
from tests.bundles import expected, make_images
from tests.cuda_double import ON_HOST, Driver, ProviderDouble, installed

Lives = tuple[TensorLife, ...]
TARGETS = [OnnxRuntimeCuda, OnnxRuntimeTensorRt, OnnxRuntimeRtx]


@pytest.fixture
def driver() -> Iterator[Driver]:
    with installed(Driver()) as double:
        yield double


@pytest.fixture
def pieces(tiny_bundle: Path) -> list[PieceSpec]:
    bundle = open_bundle(tiny_bundle)
    return bundle.piece_specs([piece.id for piece in bundle.runnable(spans=False)])


@pytest.fixture
def tensors(tiny_bundle: Path) -> Lives:
    return open_bundle(tiny_bundle).tensor_lives(["full"])


@pytest.fixture
def doubled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every target is the double."""
    monkeypatch.setattr(registry, "get", lambda name: ProviderDouble())


@pytest.mark.parametrize("make", TARGETS)
def test_where_onnxruntime_lacks_the_provider_it_says_so(make: type, tiny_bundle: Path) -> None:
    target = make()
    assert target.name in registry.names()
    if target.provider.name in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has it")
    assert target.provider.name in target.available()
    with pytest.raises(TargetError, match=f"{target.name}: this onnxruntime has no {target.provider.name}"):
        load(tiny_bundle, target.name)


@pytest.mark.filterwarnings("ignore:.*CUDAExecutionProvider")
def test_a_provider_that_falls_back_to_the_cpu_is_refused(driver: Driver, pieces: list[PieceSpec]) -> None:
    """As onnxruntime does where the provider's libraries do not load: it only warns."""
    absent = Provider("CUDAExecutionProvider", graph_option="")
    with pytest.raises(TargetError, match="onnxruntime fell back to CPUExecutionProvider; expected CUDA") as caught:
        OnnxRuntimeExecutor("onnxruntime-cuda", absent, pieces)
    assert "cuDNN" in str(caught.value.hint)


def test_a_provider_without_graphs_runs_without(
    driver: Driver, pieces: list[PieceSpec], tensors: tuple[TensorLife, ...]
) -> None:
    cannot = Provider("CPUExecutionProvider", device="cpu", stream_option="", graph_option="no_such_option")
    device = GpuDevice("double", pieces, tensors, OnnxRuntimeExecutor("double", cannot, pieces), 4)
    device.close()
    assert driver.held == {}


def test_a_closed_device_keeps_no_session_alive(
    driver: Driver, pieces: list[PieceSpec], tensors: tuple[TensorLife, ...]
) -> None:
    """Each holds memory of the GPU, and has to go before the stream that it runs on."""
    executor = OnnxRuntimeExecutor("double", ON_HOST, pieces)
    sessions = [weakref.ref(session) for session in executor._sessions.values()]
    device = GpuDevice("double", pieces, tensors, executor, 4)
    device.close()
    gc.collect()
    assert sessions
    assert [session() for session in sessions] == [None] * len(sessions)


def test_the_driver_is_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call of CUDA asks whether there is one, and looking for it takes longer than the call."""
    looked: list[str] = []
    monkeypatch.setattr(ctypes, "CDLL", looked.append)
    cuda._driver.cache_clear()
    try:
        assert [cuda.driver_missing() for _ in range(3)] == [None] * 3
    finally:
        cuda._driver.cache_clear()
    assert looked == ["libcuda.so.1"]


def test_closed_it_leaves_nothing_on_the_device(
    driver: Driver, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "get", lambda name: ProviderDouble())
    with load(tiny_bundle, "provider double") as session:
        images = make_images(11)
        session.use("fast")
        np.testing.assert_array_equal(session(images).exit, expected(images, session.configuration).exit)
        assert driver.held
        assert driver.streams == 1
    assert driver.held == {}
    assert driver.streams == 0


def test_out_of_device_memory_says_how_much_and_what_to_do(
    pieces: list[PieceSpec], tensors: tuple[TensorLife, ...]
) -> None:
    with installed(Driver(capacity=1000)):
        executor = OnnxRuntimeExecutor("onnxruntime-cuda", ON_HOST, pieces)
        with pytest.raises(
            TargetError, match=r"MB of device memory cannot be allocated: cudaMalloc: out of memory"
        ) as caught:
            GpuDevice("onnxruntime-cuda", pieces, tensors, executor, 8)
        assert "--max-batch" in str(caught.value.hint)


def test_a_piece_that_cannot_be_read_is_named(driver: Driver, bundle_copy: Path) -> None:
    (bundle_copy / "segments/segment_01.onnx").write_bytes(b"junk")
    bundle = open_bundle(bundle_copy, check_hashes=False)
    with pytest.raises(BundleError, match=r"segment_01\.onnx does not load in onnxruntime"):
        OnnxRuntimeExecutor("double", ON_HOST, bundle.piece_specs(["segment_01"]))


def test_a_batch_beyond_the_buffers_is_cut_into_chunks(
    driver: Driver, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "get", lambda name: ProviderDouble())
    with load(tiny_bundle, "provider double", max_batch=3) as session:
        assert len(session(make_images(10)).label) == 10
