"""TensorRT-RTX really builds the pieces of models in use, for two generations of GPUs, on a machine without one."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from benchmarks.coverage import spread
from dyce_export.options import Options
from dyce_export.pipeline import write_bundle
from dyce_export.prepare import capture_source, prepare
from dyce_export.progress import Progress
from dyce_export.sources.source import from_module
from dyce_export.verification.probes import condition, synthetic_images
from dyce_runtime import open_bundle
from dyce_runtime.execution.contracts import TargetSpec
from dyce_targets.nvidia.products import RTX
from dyce_targets.nvidia.targets import TensorRtRtx

pytestmark = pytest.mark.skipif(RTX.missing() is not None, reason=str(RTX.missing()))
MODELS = ["resnet50", "vit_tiny_patch16_224", "convnext_atto", "swin_tiny_patch4_window7_224"]


@pytest.mark.slow  # test_cli_compile.py builds engines of a small bundle
@pytest.mark.parametrize("name", MODELS)
def test_engines_of_every_piece_are_built_for_two_compute_capabilities(tmp_path: Path, name: str):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = timm.create_model(name).eval()
    condition(module, synthetic_images(8, (3, 224, 224), seed=1))
    progress, options = Progress(), Options()
    captured = capture_source(from_module(module, input_size=(3, 224, 224)), progress)
    exits = spread(list(captured.points.points))
    prepared = prepare(captured, exits, data=None, val=None, options=options)
    write_bundle(prepared, tmp_path / "model.dyce", options=options, progress=progress)
    bundle = open_bundle(tmp_path / "model.dyce")
    target, spec = TensorRtRtx(), TargetSpec(devices=("sm86", "sm120"))
    pieces = bundle.piece_specs([piece.id for piece in bundle.runnable(spans=target.spans)])
    assert len(pieces) == len(exits) + 1 + len(exits) + 1
    for piece in pieces:
        path, built = target.compile(piece, spec, tmp_path / "engines")
        assert built
        # The weights are in it.
        assert path.stat().st_size > 0.9 * bundle.size(piece.id)
