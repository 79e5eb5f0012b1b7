"""The rule that decides which samples exit."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def leaves(scores: npt.NDArray[np.float32], threshold: float | np.float32) -> npt.NDArray[np.bool_]:
    """Return (N,) bool: whether each score (N,) is strictly above the threshold as float32. NaN never is."""
    return scores > np.float32(threshold)
