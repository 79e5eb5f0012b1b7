"""Reliability: how often a head is right, by its confidence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dyce_calibration.records import Records
from dyce_runtime.bundle.manifest import FINAL

BINS = 15
# Bin i holds the confidences above EDGES[i], up to and including EDGES[i + 1]; the first bin also holds 0.
EDGES: NDArray[np.float64] = np.linspace(0, 1, BINS + 1)


@dataclass(frozen=True, eq=False)
class Reliability:
    """Reliability of one head on all samples of a split, including those that would have exited before it.

    Attributes:
        exit, head: the head; ``final`` and an empty string for the model's own classifier.
        counts: (15,) int64, samples per bin.
        accuracy: (15,) float64, share of these classified correctly; NaN for empty bins.
        confidence: (15,) float64, their mean confidence; NaN for empty bins.
        error: expected calibration error: the mean over the samples of the distance between the two.
    """

    exit: str
    head: str
    counts: NDArray[np.int64]
    accuracy: NDArray[np.float64]
    confidence: NDArray[np.float64]
    error: float


def reliability(records: Records) -> tuple[Reliability, ...]:
    """Return the reliability of every head on all given records, the final head last."""
    names = (*records.heads, (FINAL, ""))
    right = 1 - records.loss
    return tuple(_of_head(*name, records.scores[:, i], right[:, i]) for i, name in enumerate(names))


def _of_head(exit: str, head: str, confidences: NDArray[np.float32], right: NDArray[np.float32]) -> Reliability:
    sure = confidences.astype(np.float64)
    bins = np.digitize(sure, EDGES[1:-1], right=True)
    counts = np.bincount(bins, minlength=BINS)
    with np.errstate(invalid="ignore"):  # 0 / 0 in an empty bin
        accuracy = np.bincount(bins, right, BINS) / counts
        confidence = np.bincount(bins, sure, BINS) / counts
    error = np.nansum(np.abs(accuracy - confidence) * counts) / max(len(sure), 1)
    return Reliability(exit, head, counts, accuracy, confidence, float(error))
