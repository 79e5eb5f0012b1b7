"""Small models of different structure, cut at three exits and verified; the coverage page does it for all families."""

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
from dyce_runtime.bundle.reader import open_bundle

# Name, edge of the pictures, what makes it smaller than it is, most tensors that a cut carries.
FAMILIES = {
    "test_mambaout": (64, {}, 1),  # channels last
    "test_convnext": (64, {}, 1),
    "regnetx_002": (64, {}, 1),  # blocks are called b1, b2, ...
    "densenet121": (64, {"block_config": (2, 2, 2, 2), "growth_rate": 8}, 1),  # concatenated features
    "beit_base_patch16_224": (64, {"img_size": 64, "depth": 4, "embed_dim": 96, "num_heads": 3}, 1),  # biased attention
    "hiera_tiny_224": (64, {"img_size": 64, "stages": (1, 1, 2, 1)}, 1),  # attention over five axes
    "swin_tiny_patch4_window7_224": (
        56,
        {"img_size": 56, "depths": (2, 2, 2), "num_heads": (2, 4, 8), "embed_dim": 32},
        1,
    ),  # windows
    "crossvit_tiny_240": (120, {"img_size": 120, "depth": [[1, 1, 0]] * 3}, 2),  # two branches
    "tnt_s_legacy_patch16_224": (64, {"img_size": 64, "depth": 3}, 2),  # pixels of a patch are rows of the batch
}


# Channels last; `make nightly` cuts all. Cuts of two tensors are in tests/models.py, too.
QUICK = {"test_mambaout"}


@pytest.mark.parametrize(
    ("name", "edge", "smaller", "tensors"),
    [
        pytest.param(name, *how, id=name, marks=[] if name in QUICK else pytest.mark.slow)
        for name, how in FAMILIES.items()
    ],
)
def test_a_family_is_cut_at_three_exits_and_verified(tmp_path: Path, name, edge, smaller, tensors):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = timm.create_model(name, **smaller).eval()
    condition(module, synthetic_images(16, (3, edge, edge), seed=1))
    progress = Progress()
    captured = capture_source(from_module(module, input_size=(3, edge, edge)), progress)
    exits = spread(list(captured.points.points))
    assert len(exits) == 3
    prepared = prepare(captured, exits, data=None, val=None, options=Options())
    write_bundle(prepared, tmp_path / "model.dyce", options=Options(), progress=progress)
    manifest = open_bundle(tmp_path / "model.dyce").manifest
    found = manifest.verification
    assert (found.verdict, found.exit_agreement) == ("passed", 1.0)
    assert found.max_relative_error < 2e-5
    assert max(len(piece.reads) for piece in manifest.pieces) == tensors
