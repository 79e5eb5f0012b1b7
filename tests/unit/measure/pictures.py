"""Pictures to measure with, and what a document of the benchmark says of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dyce_runtime import Configuration
from dyce_runtime.bundle.reader import SPLITS
from dyce_runtime.inputs.datasets import Dataset
from tests.bundles import CLASSES, on

SEGMENT_MACS = (16 * 12, 16 * 16, 16 * 16 + 20)
EARLY = Configuration("early", on(exit3=0.0))


def make_data(count: int = 40) -> Dataset:
    random = np.random.default_rng(5)
    pictures = random.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return Dataset("made", pictures, random.integers(0, CLASSES, count))


def store_splits(bundle: Path, **hashes: np.ndarray) -> None:
    (bundle / SPLITS).parent.mkdir()
    np.savez(bundle / SPLITS, **hashes)


def only(document: Mapping[str, Any]) -> dict[str, Any]:
    (entry,) = document["configurations"]
    return entry
