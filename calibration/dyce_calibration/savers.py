"""Estimate from records which of several small models (savers) is worth running before a base: the published criterion.

Every sample pays for the saver, and the samples that the saver classifies do not pay for the base. With c the cost of
the saver relative to the base and r the fraction of samples that it can take over, the cost of the pair relative to the
base alone changes by dC = c - r: the lower the better, and the pair saves if it is below 0 (TinySaver, arXiv
2403.17726).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dyce_calibration.records import Records
from dyce_calibration.search.costs import CostTable
from dyce_runtime.bundle.manifest import BUILTIN, FINAL
from dyce_runtime.program.rule import leaves

# Number of steps in which the threshold is lowered from 1 to 0.
STEPS = 100


class TakeoverPoint(NamedTuple):
    """How much a saver can take over.

    Attributes:
        threshold: threshold of its score.
        share: fraction of the samples with a higher score.
    """

    threshold: float
    share: float


def take_over(
    score: NDArray[np.float32], loss: NDArray[np.float32], base_loss: NDArray[np.float32], steps: int = STEPS
) -> TakeoverPoint:
    """Lower the threshold from 1 until the base would lose less on the samples that the saver classifies, or to 0.

    Args:
        score: (N,) scores of the saver.
        loss, base_loss: (N,) losses of the saver and of the base on the same samples.
        steps: the thresholds 1 - k / steps are tried; at 0 the saver classifies all samples.
    """
    for k in range(steps + 1):
        threshold = np.float32(1 - k / steps)
        by_saver = leaves(score, threshold)
        if loss[by_saver].sum() > base_loss[by_saver].sum():
            break
    return TakeoverPoint(float(threshold), float(by_saver.mean()))


def saver_costs(saver: float, base: float) -> CostTable:
    """Return the cost table of a saver before a base, both without exits of their own.

    Args:
        saver, base: their multiply-accumulates for one sample.
    """
    backbone = {"saver0": saver, FINAL: saver + base}
    return CostTable("macs", backbone, {"saver0": {BUILTIN: 0.0}}, base, savers=("saver0",))


def pair(saver: Records, base: Records) -> Records:
    """Return the records that a bundle of this saver and this base, without exits, would have.

    Args:
        saver, base: records of the same samples in the same order; only their final heads are used.
    """
    own = saver.with_columns([])
    return base.with_columns([]).insert(0, (("saver0", BUILTIN),), own.predictions, own.scores, own.cost)
