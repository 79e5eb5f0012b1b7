"""Temperature scaling: one number per head, so that confidences mean what they say."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dyce_runtime.errors import DataError

# T is at most this many times the mean margin between the two largest logits; all classes are then nearly as likely.
_VAGUEST = 100.0
# Nine margins in ten are at most this many times T: 1 - exp(-14) is 14 units in the last place of float32 below 1, so
# these confidences do not all round to 1.
_SUREST = 14.0
_STEPS = 60


def fit_temperature(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """The T that minimises the cross-entropy between the labels and softmax(logits / T) (Guo et al. 2017).

    Where all n samples are right, the labels alone would drive T to 0 and every confidence to 1. By Laplace's rule of
    succession n samples support a confidence of about (n + 1) / (n + 2), so each label counts that much and the
    likeliest other class the rest, as in Platt's scaling (1999). T is proportional to the scale of the logits.

    Args:
        logits: (N, classes); -inf excludes a class.
        labels: (N,).

    Returns:
        1 for logits that cannot tell, such as constant ones.

    Raises:
        DataError: logits are NaN or infinite.
    """
    below, target = _against_the_top(logits, labels)
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
    """softmax(logits / temperature) over the last axis, in float32 as the heads compute it."""
    scaled = logits.astype(np.float32) / np.float32(temperature)
    exponentials = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True), np.float32)


def _against_the_top(
    logits: NDArray[np.float32], labels: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Logits minus the largest of their sample, (n, classes), and their expectation under the smoothed labels, (n,).

    Samples that say nothing about a temperature are left out: those whose label, or every other class, is excluded.
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
