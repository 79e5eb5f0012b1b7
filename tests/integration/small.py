"""A tiny model and data for it, for exports that take seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import nn

from dyce_calibration.heads.training import Recipe
from dyce_export.options import Options
from dyce_export.sources.source import Source, from_module
from tests.models import INPUT_SIZE, Convolutions, build

# Labels that mean nothing are noticed; these tests are about other things.
ANY_LABELS = Options(recipe=Recipe(epochs=1), allow_suspicious=True)


def tiny(make: type[nn.Module] = Convolutions) -> Source:
    """A loaded model of :mod:`tests.models`."""
    return from_module(build(make), input_size=INPUT_SIZE)


def labelled(path: Path, count: int = 400, classes: int = 5) -> Path:
    """Noise with labels: enough to run everything, not to learn anything. It takes :data:`ANY_LABELS`."""
    random = np.random.default_rng(0)
    pictures = random.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    np.savez(path, images=pictures, labels=random.integers(0, classes, count))
    return path
