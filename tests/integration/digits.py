"""An export of the digits model, trained for a moment, that several tests look at."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.digits import INPUT, digits_net, train
from dyce_calibration.heads.training import Recipe
from dyce_export.cascade import export_source
from dyce_export.options import Options
from dyce_export.pipeline import Export
from dyce_export.sources.source import from_module
from dyce_runtime.inputs.datasets import open_dataset
from dyce_runtime.inputs.preprocessing import preprocess

EXITS = ["2", "4", "6"]


@dataclass
class Digits:
    """A bundle of the digits model, trained for a moment, and what it was made from."""

    model: nn.Module
    before: nn.Module
    export: Export
    parent: Path

    @property
    def path(self) -> Path:
        return self.export.path

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        self.model.eval()
        with torch.inference_mode():
            return self.model(torch.from_numpy(pixels)).numpy()


def export_digits(parent: Path) -> Digits:
    """Train, and export into a folder."""
    data = open_dataset("digits#train")
    pixels = torch.from_numpy(preprocess(data.images(range(640)), INPUT))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = digits_net()
        train(model, pixels, torch.from_numpy(data.labels[:640]), epochs=2, batch=64)
    model.train()  # an export must not care, and must not change it
    before = copy.deepcopy(model)
    source = from_module(model, input_size=(1, 16, 16), mean=INPUT.mean, std=INPUT.std, crop_pct=1.0)
    export = export_source(
        source,
        EXITS,
        parent / "digits.dyce",
        data="digits#train",
        val="digits#test",
        options=Options(recipe=Recipe(epochs=10)),
    )
    return Digits(model, before, export, parent)
