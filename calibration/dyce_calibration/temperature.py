"""Temperature scaling: one number per head, so that confidences mean what they say."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_RANGE = (0.05, 20.0)
_STEPS = 60


def fit_temperature(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """The T in [0.05, 20] that minimises the cross-entropy of softmax(logits / T) (Guo et al. 2017).

    The cross-entropy is convex in 1/T, so golden-section search over log T finds its minimum.

    Args:
        logits: (N, classes).
        labels: (N,).
    """
    low, high = np.log(_RANGE[0]), np.log(_RANGE[1])
    golden = (np.sqrt(5) - 1) / 2
    for _ in range(_STEPS):
        left, right = high - golden * (high - low), low + golden * (high - low)
        if _cross_entropy(logits, labels, np.exp(left)) < _cross_entropy(logits, labels, np.exp(right)):
            high = right
        else:
            low = left
    return float(np.exp((low + high) / 2))


def softmax(logits: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    """softmax(logits / temperature) over the last axis, in float32 as the heads compute it."""
    scaled = logits.astype(np.float32) / np.float32(temperature)
    exponentials = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True), np.float32)


def _cross_entropy(logits: NDArray[np.float32], labels: NDArray[np.int64], temperature: float) -> float:
    scaled = logits.astype(np.float64) / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    return float(np.mean(np.log(np.exp(scaled).sum(axis=1)) - scaled[np.arange(len(labels)), labels]))
