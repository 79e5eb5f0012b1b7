"""Temperature scaling: one number per head that calibrates its confidences."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dyce_runtime.errors import DataError

# T is at most this many times the mean margin between the two largest logits; all classes are then nearly equal.
_VAGUEST = 100.0
# For nine margins in ten, margin / T is at most this: 1 - exp(-14) is 14 units in the last place of float32 below 1, so
# these confidences do not all round to 1.
_SUREST = 14.0
_STEPS = 60


def fit_temperature(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Return the T that minimises the cross-entropy between the labels and softmax(logits / T) (Guo et al. 2017).

    If all n samples are classified correctly, the labels alone would drive T to 0 and every confidence to 1. By
    Laplace's rule of succession n samples support a confidence of about (n + 1) / (n + 2), so each label has that
    weight, and the most likely other class gets the rest, as in Platt's scaling (1999). T is proportional to the scale
    of the logits.

    Args:
        logits: (N, classes); -inf excludes a class.
        labels: (N,).

    Returns:
        the temperature; 1 if the logits do not determine it, for instance because they are constant.

    Raises:
        DataError: logits are NaN or infinite.
    """
    below, target = _relative_to_largest(logits, labels)
    margins = -np.partition(below, -2, axis=1)[:, -2] if len(below) else np.empty(0)
    margins = margins[margins > 0]
    if len(margins) == 0:
        return 1.0

    def cross_entropy(log_temperature: float) -> float:
        inverse = np.exp(-log_temperature)
        return float(np.mean(np.log(np.exp(inverse * below).sum(axis=1)) - inverse * target))

    # It is convex in 1 / T, so golden-section search over log T finds its minimum.
    low, high = np.log(np.quantile(margins, 0.9) / _SUREST), np.log(_VAGUEST * margins.mean())
    golden = (np.sqrt(5) - 1) / 2
    for _ in range(_STEPS):
        left, right = high - golden * (high - low), low + golden * (high - low)
        if cross_entropy(left) < cross_entropy(right):
            high = right
        else:
            low = left
    return float(np.exp((low + high) / 2))


def softmax(logits: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    """Return softmax(logits / temperature) over the last axis, in float32 as the heads compute it."""
    scaled = logits.astype(np.float32) / np.float32(temperature)
    exponentials = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True), np.float32)


def _relative_to_largest(
    logits: NDArray[np.float32], labels: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the logits minus the largest of their sample, (n, classes), and the expected value of these, (n,).

    The expectation is taken under the smoothed labels. Samples that do not depend on a temperature are left out: those
    whose label, or every other class, is excluded.
    """
    top = logits.max(axis=1, keepdims=True)
    strange = int((~np.isfinite(top)).sum())
    if strange:
        raise DataError(
            f"the logits of {strange} of {len(logits)} samples are NaN or infinite; expected finite numbers",
            hint="Look for an overflow or a division by zero in the model, and for extreme values in the pictures.",
        )
    below = logits.astype(np.float64) - top
    rows = np.arange(len(labels))
    of_label = below[rows, labels]
    others = below.copy()
    others[rows, labels] = -np.inf
    rival = others.max(axis=1)
    usable = np.isfinite(of_label) & np.isfinite(rival)
    doubt = 1 / (int(usable.sum()) + 2)
    return below[usable], (1 - doubt) * of_label[usable] + doubt * rival[usable]
