"""Dividing samples by their content, so that equal images are always in the same split.

The split of a sample depends only on its content hash and the seed: not on its position in the data set, nor on other
samples. Equal images therefore stay together, and adding data moves no sample to another split.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from dyce_runtime.errors import DataError

#: The splits of ``--val``: each choice and each measurement uses its own samples.
VAL_SHARES: Mapping[str, float] = {"temperature": 0.10, "search": 0.40, "certification": 0.25, "test": 0.25}

#: Share of ``--data`` that is held out in place of ``--val`` if that is not given.
HOLD_OUT = 0.30


def divide(hashes: NDArray[np.uint64], shares: Mapping[str, float], seed: int) -> dict[str, NDArray[np.int64]]:
    """Divide samples into named splits.

    Divisions with different split names are independent of each other even with one seed, so that one part of a
    division can be divided again.

    Args:
        hashes: (N,) content hash of every sample, as in ``Dataset.hashes``.
        shares: size of each split as a fraction; they sum to 1.
        seed: the same seed gives the same division, on every platform.

    Returns:
        for every split the ascending indices of its samples; each of the N samples is in exactly one split.

    Raises:
        DataError: a split would be empty.
        ValueError: the shares are not positive or do not sum to 1.
    """
    if not math.isclose(sum(shares.values()), 1.0, abs_tol=1e-9) or min(shares.values()) <= 0:
        raise ValueError(f"shares must be positive and add up to 1, got {dict(shares)}")
    upper = np.cumsum(list(shares.values()))[:-1]
    side = np.searchsorted(upper, _uniform(np.asarray(hashes, np.uint64), f"{seed}:{','.join(shares)}"), side="right")
    splits = {name: np.flatnonzero(side == number).astype(np.int64) for number, name in enumerate(shares)}
    for name, indices in splits.items():
        if indices.size == 0:
            raise DataError(
                f"found {np.unique(hashes).size} different pictures: too few, split {name!r} "
                f"({shares[name]:.0%}) would be empty",
                hint=f"give at least {_enough(shares)} different pictures",
            )
    return splits


def _enough(shares: Mapping[str, float]) -> int:
    """Return a number of samples at which the smallest split is empty in less than 1 % of all divisions: e^-5."""
    return math.ceil(5 / min(shares.values()))


def _uniform(hashes: NDArray[np.uint64], salt: str) -> NDArray[np.float64]:
    """Map hashes to numbers in [0, 1) with the finaliser of splitmix64; every salt gives another map."""
    key = int.from_bytes(hashlib.sha256(salt.encode()).digest()[:8], "little")
    mixed = hashes ^ np.uint64(key)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53  # the upper 53 bits: every value is exact in float64
