from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import PIL
import pytest

from dyce_runtime import load, open_bundle
from dyce_runtime.bundle.configuration import Configuration
from dyce_runtime.errors import PieceError, TargetError
from dyce_runtime.execution.contracts import TargetSpec
from dyce_runtime.execution.plan import make_plan
from dyce_targets.cpu import onnxruntime_cpu
from dyce_targets.cpu.host_context import HostContext
from dyce_targets.cpu.onnxruntime_cpu import OnnxRuntimeCpu
from tests.bundles import expected, make_images, on


def in_a_new_process(code: str, *arguments: Path) -> list[str]:
    """The lines that a script prints; onnxruntime's pools live as long as the process."""
    run = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(run, check=True, capture_output=True, text=True, timeout=300).stdout.splitlines()


def test_the_private_pool_leaves_the_sessions_of_the_application_alone(tiny_bundle: Path):
    code = """
import sys, numpy, onnxruntime, dyce_runtime
images = numpy.zeros((2, 3, 4, 4), numpy.float32)
def plain():
    return onnxruntime.InferenceSession(sys.argv[2]).run(["label"], {"image": images})[0]
before = plain()
with dyce_runtime.load(sys.argv[1], pool="private") as session:
    assert session(images).label.shape == plain().shape == before.shape
print("fine")
"""
    assert in_a_new_process(code, tiny_bundle, tiny_bundle / "spans/full.onnx") == ["fine"]


def test_the_global_pool_is_made_once_with_one_size(tiny_bundle: Path):
    code = """
import sys, numpy, dyce_runtime
images = numpy.zeros((2, 3, 4, 4), numpy.float32)
def run(**options):
    try:
        print(dyce_runtime.load(sys.argv[1], **options)(images).label.shape)
    except dyce_runtime.DyceError as error:
        print(f"{error.code}: {error.message} {error.hint}")
run(pool="global", threads=1)
run(pool="global", threads=1)
run(pool="global", threads=2)
"""
    first, second, other = in_a_new_process(code, tiny_bundle)
    assert first == second == "(2,)"
    assert other.startswith("target: onnxruntime's global pool already has 1 threads; found a request for 2")
    assert "pool='private'" in other


def test_private_pools_beside_the_global_one_are_refused_with_a_way_out(tiny_bundle: Path):
    code = """
import sys, dyce_runtime
dyce_runtime.load(sys.argv[1], pool="global")
try:
    dyce_runtime.load(sys.argv[1])
except dyce_runtime.DyceError as error:
    print(f"{error.code}: {error.message}; {error.hint}")
"""
    assert in_a_new_process(code, tiny_bundle)[-1] == (
        "target: this process uses onnxruntime's global thread pool, which forbids private ones; "
        "Load with pool='global'."
    )


def test_without_onnxruntime_the_reason_says_what_to_install(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'dyce-export[cpu]'" in (OnnxRuntimeCpu().available() or "")
    for load_it in (
        lambda: load(tiny_bundle, "onnxruntime"),
        lambda: OnnxRuntimeCpu().open(open_bundle(tiny_bundle).piece_specs(["full"]), (), TargetSpec()),
    ):
        with pytest.raises(TargetError, match="onnxruntime is not installed; pip install"):
            load_it()


def test_an_unknown_target_is_refused_with_the_installed_ones(tiny_bundle: Path):
    with pytest.raises(TargetError, match=r"no target 'abacus'; installed: .*onnxruntime"):
        load(tiny_bundle, "abacus")


@pytest.mark.parametrize("failing", ["segment_00", "exit_03_linear", "segment_01"])
def test_what_the_engine_refuses_names_the_piece(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, failing: str):
    def refuse() -> None:
        raise RuntimeError("out of memory")

    def prepare(session: Any, binding: Any) -> Callable[[], object]:
        return refuse if Path(session._model_path).stem == failing else engine_call(session, binding)

    engine_call = onnxruntime_cpu._engine_call
    monkeypatch.setattr(onnxruntime_cpu, "_engine_call", prepare)
    bundle = open_bundle(tiny_bundle)
    pieces = bundle.piece_specs([piece.id for piece in bundle.manifest.pieces])
    device = OnnxRuntimeCpu().open(pieces, bundle.tensor_lives([piece.id for piece in pieces]), TargetSpec(threads=1))
    message = f"piece {failing} failed in onnxruntime: out of memory"
    (stage,) = make_plan(bundle.manifest, Configuration("never", on(exit3=1.0))).stages

    def run_in_turn(context: HostContext) -> None:
        for piece in ("segment_00", "exit_03_linear", "segment_01"):
            context.run(piece)

    with device.context(2) as context:
        context.set_input("image", make_images(2))
        with pytest.raises(PieceError, match=message):
            run_in_turn(context)
    with device.context(1) as context:
        context.set_input("image", make_images(1))
        with pytest.raises(PieceError, match=message):
            context.run_until_exit(stage.steps)


def test_a_call_without_the_engines_wrapper_is_the_same_call(tiny_bundle: Path):
    bundle = open_bundle(tiny_bundle)
    session = onnxruntime.InferenceSession(str(bundle.file("segments/segment_00.onnx")))
    found = []
    for hidden in (False, True):
        binding = session.io_binding()
        binding.bind_cpu_input("image", make_images(1))
        binding.bind_output(bundle.manifest.piece("segment_00").writes[0], "cpu")
        public = SimpleNamespace(run_with_iobinding=session.run_with_iobinding)
        onnxruntime_cpu._engine_call(public if hidden else session, binding)()
        found.append(binding.copy_outputs_to_cpu()[0])
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("small", [0, 1 << 20], ids=["bound where it is", "copied"])
def test_one_sample_leaves_where_it_would_leave_a_batch(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, small: int):
    monkeypatch.setattr("dyce_targets.cpu.host_buffers._SMALL", small)
    monkeypatch.setattr("dyce_targets.cpu.host_context._MOST_RECORDED", 3)
    images = make_images(12)
    settings = [{}, on(exit3=0.7), on(exit7=0.8), on(exit3=0.5, exit7=0.9), on(exit3=0.9, exit7=0.5)]
    configurations = [Configuration(f"own {k}", exits) for k, exits in enumerate(settings)]
    with load(tiny_bundle, threads=1) as session:
        for turn in range(3):
            for configuration in configurations[turn:]:
                session.use(configuration)
                alone = [session(image[None]) for image in images]
                wanted = expected(images, configuration)
                np.testing.assert_array_equal([int(result.exit[0]) for result in alone], wanted.exit)
                np.testing.assert_array_equal(np.concatenate([result.logits for result in alone]), wanted.logits)


def test_a_piece_is_compiled_to_itself(tiny_bundle: Path):
    (spec,) = open_bundle(tiny_bundle).piece_specs(["full"])
    assert OnnxRuntimeCpu().compile(spec, TargetSpec(), tiny_bundle) == (spec.path, False)


@pytest.mark.parametrize(
    ("threads", "macs", "batch"), [(1, 124_000_000, 16), (2, 124_000_000, 32), (2, 4_000_000_000, 2), (1, 100, 64)]
)
def test_small_models_run_in_larger_batches(threads: int, macs: int, batch: int):
    assert OnnxRuntimeCpu().best_batch(TargetSpec(threads=threads), macs) == batch


@pytest.mark.parametrize("small", [0, 1 << 20], ids=["bound where it is", "copied"])
def test_one_image_is_read_however_large_it_is(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, small: int):
    monkeypatch.setattr("dyce_targets.cpu.host_buffers._SMALL", small)
    with load(tiny_bundle, threads=1) as session:
        session.use("full")
        for count in (1, 3, 1, 1):
            for seed in range(3):
                images = make_images(count, seed)
                for given in (images, np.asfortranarray(images)):
                    np.testing.assert_array_equal(session(given).logits, expected(images, session.configuration).logits)


@pytest.mark.parametrize(("module", "found"), [("PIL", PIL.__version__), ("abacus", "unknown")])
def test_an_engine_may_come_from_a_distribution_of_another_name(
    module: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OnnxRuntimeCpu, "name", module)
    assert OnnxRuntimeCpu().version() == found
