"""The rule by which samples leave."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def leaves(scores: npt.NDArray[np.float32], threshold: float | np.float32) -> npt.NDArray[np.bool_]:
    """Whether each of the scores is strictly above a threshold, as float32; NaN is above none."""
    return scores > np.float32(threshold)
