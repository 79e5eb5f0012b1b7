import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import dyce_export
from dyce_export import pipeline
from dyce_export.graph.backbone import Backbone
from dyce_export.graph.capture import capture
from dyce_export.graph.exit_points import find_exit_points
from dyce_export.verification.rounding import InFloat64
from dyce_runtime.errors import VerificationError

INPUT_SIZE = (3, 16, 16)
TURNS = 30.0


class Turned(nn.Module):
    """A rotation by a large angle: the error of the angle, in radians, is the error of the result."""

    def __init__(self, turns: float) -> None:
        super().__init__()
        self.turns = turns
        self.mix = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.sin(self.turns * self.mix(x))


class Net(nn.Module):
    def __init__(self, turns: float) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(*[Turned(turns) for _ in range(4)])
        self.fc = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


def net(turns: float) -> Net:
    torch.manual_seed(0)
    return Net(turns).eval()


def test_the_graph_in_float64_is_the_model_in_float64():
    model = net(3.0)
    program = capture(model, INPUT_SIZE)
    backbone = Backbone(program, find_exit_points(program).select(["2"]))
    images = torch.rand(3, *INPUT_SIZE)
    logits, [[seam]] = backbone.activations(images, run=InFloat64(backbone.module).run)
    assert (logits.dtype, seam.dtype) == (torch.float64, torch.float64)
    assert torch.allclose(logits, model.double()(images.double()), rtol=1e-12, atol=1e-14)


def test_a_model_that_amplifies_rounding_is_told_so(tmp_path):
    with pytest.raises(VerificationError, match="This is rounding: the model amplifies it") as caught:
        dyce_export.export(net(TURNS), [3], tmp_path / "b.dyce", input_size=INPUT_SIZE)
    accepted = re.fullmatch(r"--tolerance (1e-\d) accepts it, .*", caught.value.hint)
    dyce_export.export(net(TURNS), [3], tmp_path / "b.dyce", input_size=INPUT_SIZE, tolerance=float(accepted[1]))


def test_a_model_that_is_nothing_but_rounding_is_told_so(tmp_path):
    with pytest.raises(VerificationError, match="This is rounding") as caught:
        dyce_export.export(net(300.0), [3], tmp_path / "b.dyce", input_size=INPUT_SIZE)
    assert "mean little" in caught.value.hint


def test_a_mistake_is_not_called_rounding(tmp_path, monkeypatch):
    compute = pipeline.compute_reference

    def mistaken(*arguments):
        reference = compute(*arguments)
        return replace(reference, logits=reference.logits * np.float32(1.01))

    monkeypatch.setattr(pipeline, "compute_reference", mistaken)
    with pytest.raises(VerificationError, match="the relative error at logits") as caught:
        dyce_export.export(net(3.0), [3], tmp_path / "b.dyce", input_size=INPUT_SIZE)
    assert "rounding" not in caught.value.message
    assert "do not compute what the model computes" in caught.value.hint
