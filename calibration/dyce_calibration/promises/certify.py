"""Certify configurations: bound their loss on unseen data, with a probability that holds for any distribution.

Learn-then-test (Angelopoulos et al., arXiv 2110.01052) with fixed-sequence testing: configurations are tested from the
safest to the boldest, in an order that does not depend on these samples, each at level delta. Testing stops at the
first that fails. The probability that any configuration that passed loses more than epsilon is then at most delta.
Each test is a bet against the hypothesis "it loses more than epsilon" (Waudby-Smith and Ramdas, arXiv 2010.09686): the
expected capital does not grow if the hypothesis is true, so multiplying the capital by 1 / delta is evidence at level
delta. The only assumption is that the samples are independent draws from the distribution of later inputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from dyce_runtime.errors import UsageError

# A single bet risks at most this fraction of the capital, so that one sample cannot lose all of it.
_LARGEST_STAKE = 0.75
# A smaller epsilon or delta would need more than ten million samples.
_SMALLEST = 1e-6


def check_promise(epsilon: float, delta: float) -> None:
    """Raise UsageError unless both are in [1e-6, 1)."""
    for name, value in (("epsilon", epsilon), ("delta", delta)):
        if not _SMALLEST <= value < 1:
            raise UsageError(
                f"{name} is {value:g}; expected a fraction of at least {_SMALLEST:g} and below 1, such as 0.01",
                hint="A smaller value would need more than ten million samples." if value > 0 else "",
            )


def certified(losses: Iterable[NDArray[np.float32]], epsilon: float, delta: float) -> int:
    """Return n, such that with probability at least 1 - delta the first n configurations lose at most epsilon each.

    Args:
        losses: for each configuration, the safest first, (N,) in [-1, 1]: its loss on each sample minus that of the
            full model. With single labels that is 1 where only the full model is right and -1 where only the
            configuration is. The samples are in random order.
        epsilon: the largest allowed mean loss.
        delta: the probability with which the statement may be wrong.

    Raises:
        UsageError: see :func:`check_promise`.
    """
    check_promise(epsilon, delta)
    count = 0
    for sample in losses:
        if not _bet(sample, epsilon, delta):
            break
        count += 1
    return count


def samples_needed(losses: NDArray[np.float32], epsilon: float, delta: float) -> int | None:
    """Estimate how many samples would certify a configuration with losses (N,) like these; None if no number would.

    With the best fixed stake s, log capital grows by E log(1 + s (epsilon - loss)) per sample.
    """
    values, counts = np.unique(losses, return_counts=True)
    stakes = np.linspace(0, _LARGEST_STAKE / (1 - epsilon), 400)[1:]
    growth = (np.log1p(stakes[:, None] * (epsilon - values)) * (counts / counts.sum())).sum(1).max()
    return math.ceil(math.log(1 / delta) / growth) if growth > 0 else None


def _bet(losses: NDArray[np.float32], epsilon: float, delta: float) -> bool:
    """Return whether the capital reaches 1 / delta. Each stake depends only on the samples before it."""
    count = len(losses)
    if count == 0:
        return False
    loss = losses.astype(np.float64)
    # Running mean and variance of the earlier samples, with one prior sample: mean 1/2, variance 1/4.
    seen = np.arange(1, count + 1)
    mean = (0.5 + np.concatenate([[0], np.cumsum(loss)[:-1]])) / seen
    square = (0.25 + np.concatenate([[0], np.cumsum((loss - mean) ** 2)[:-1]])) / seen
    stake = np.minimum(np.sqrt(2 * math.log(1 / delta) / (count * square)), _LARGEST_STAKE / (1 - epsilon))
    capital = np.cumsum(np.log1p(stake * (epsilon - loss)))
    return bool(capital.max() >= math.log(1 / delta))
