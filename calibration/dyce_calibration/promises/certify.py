"""Certificates: what a configuration loses on unseen data, with a probability that holds for any data.

Learn-then-test (Angelopoulos et al., arXiv 2110.01052) with fixed-sequence testing: configurations are tested from the
safest to the boldest, in an order that was fixed without looking at these samples, each at level delta; testing stops
at the first that fails. The chance that any of the passed ones loses more than epsilon is then at most delta. Each
test is a bet against "it loses more than epsilon" (Waudby-Smith and Ramdas, arXiv 2010.09686): a capital that would
not grow if that were true; having multiplied it by 1 / delta is evidence at level delta. No assumption but that the
samples are independent draws from where the inputs will come from.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from dyce_runtime.errors import UsageError

# A single bet risks at most this share of what can be lost at once, so that one sample cannot ruin it.
_LARGEST_STAKE = 0.75
# Ten million samples would be needed to promise less.
_SMALLEST = 1e-6


def check_promise(epsilon: float, delta: float) -> None:
    """Raise UsageError unless both are fractions that can be promised."""
    for name, value in (("epsilon", epsilon), ("delta", delta)):
        if not _SMALLEST <= value < 1:
            raise UsageError(
                f"{name} is {value:g}; expected a fraction from {_SMALLEST:g} on and under 1, such as 0.01 for a point",
                hint="What is smaller could only be shown with more samples than anybody has." if value > 0 else "",
            )


def certified(losses: Iterable[NDArray[np.float32]], epsilon: float, delta: float) -> int:
    """How many configurations, from the first on, lose at most epsilon with probability at least 1 - delta.

    Args:
        losses: for each configuration, in a fixed order, (n,) from -1 to 1: by how much it loses more on each sample
            than the full model; with single labels, 1 where only the full model is right and -1 where only the
            configuration is. The samples are in a random order.
    """
    check_promise(epsilon, delta)
    count = 0
    for sample in losses:
        if not _bet(sample, epsilon, delta):
            break
        count += 1
    return count


def samples_needed(losses: NDArray[np.float32], epsilon: float, delta: float) -> int | None:
    """About how many samples would certify a configuration, if it loses as in this sample; None if none would.

    At the best fixed stake s the capital grows by E log(1 + s (epsilon - loss)) per sample.
    """
    values, counts = np.unique(losses, return_counts=True)
    stakes = np.linspace(0, _LARGEST_STAKE / (1 - epsilon), 400)[1:]
    growth = (np.log1p(stakes[:, None] * (epsilon - values)) * (counts / counts.sum())).sum(1).max()
    return math.ceil(math.log(1 / delta) / growth) if growth > 0 else None


def _bet(losses: NDArray[np.float32], epsilon: float, delta: float) -> bool:
    """Whether the capital reaches 1 / delta. Each stake depends on the samples before it only."""
    count = len(losses)
    if count == 0:
        return False
    loss = losses.astype(np.float64)
    before = np.arange(1, count + 1)  # of the samples before, and one that is made up: half a loss
    mean = (0.5 + np.concatenate([[0], np.cumsum(loss)[:-1]])) / before
    square = (0.25 + np.concatenate([[0], np.cumsum((loss - mean) ** 2)[:-1]])) / before
    stake = np.minimum(np.sqrt(2 * math.log(1 / delta) / (count * square)), _LARGEST_STAKE / (1 - epsilon))
    capital = np.cumsum(np.log1p(stake * (epsilon - loss)))
    return bool(capital.max() >= math.log(1 / delta))
