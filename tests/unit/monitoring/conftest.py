from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dyce_runtime import Bundle, open_bundle
from dyce_runtime.monitoring.drift import DriftReport
from tests.unit.monitoring.observed import (
    with_records,
)


@pytest.fixture(scope="module")
def tiny(tiny_bundle: Path) -> Bundle:
    return open_bundle(tiny_bundle)


@pytest.fixture
def recorded(tiny: Bundle, tmp_path: Path) -> Callable[[NDArray[np.float32]], Bundle]:
    """Makes a bundle with the given confidences as the records of its test samples."""
    return lambda confidences: with_records(tiny, tmp_path, confidences)


@pytest.fixture
def told() -> list[DriftReport]:
    return []
