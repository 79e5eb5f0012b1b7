"""Which of several small models is worth running before a base: the published criterion, from records alone.

A saver that runs first costs every sample its own operations and spares those that it answers the base's. With c the
cost of the saver relative to the base and r the share of samples that it can take, what the pair costs relative to the
base changes by dC = c - r; the lower the better, and below 0 it saves (TinySaver, arXiv 2403.17726).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dyce_calibration.records import Records
from dyce_calibration.search.costs import CostTable
from dyce_runtime.bundle.manifest import BUILTIN, FINAL
from dyce_runtime.program.rule import leaves

# Thresholds that are tried, from 1 down.
STEPS = 100


class TakeoverPoint(NamedTuple):
    """How much a saver can take over.

    Attributes:
        threshold: of its confidence.
        share: of the samples, those that are surer than that.
    """

    threshold: float
    share: float


def take_over(
    score: NDArray[np.float32], loss: NDArray[np.float32], base_loss: NDArray[np.float32], steps: int = STEPS
) -> TakeoverPoint:
    """What a saver takes at the first threshold, from 1 down, at which the base would do better on what it takes.

    Args:
        score: (N,) of the saver.
        loss, base_loss: (N,) of the saver and of the base, on the same samples.
        steps: thresholds 1 - k / steps are tried; at 0 it takes everything.
    """
    for k in range(steps + 1):
        threshold = np.float32(1 - k / steps)
        taken = leaves(score, threshold)
        if loss[taken].sum() > base_loss[taken].sum():
            break
    return TakeoverPoint(float(threshold), float(taken.mean()))


def saver_costs(saver: float, base: float) -> CostTable:
    """The cost table of a saver without exits before a base without exits, in multiply-accumulates."""
    backbone = {"saver0": saver, FINAL: saver + base}
    return CostTable("macs", backbone, {"saver0": {BUILTIN: 0.0}}, base, savers=("saver0",))


def pair(saver: Records, base: Records) -> Records:
    """The classifiers of a saver and of a base on the same samples, as records of a bundle with that saver alone."""
    own = saver.with_columns([])
    return base.with_columns([]).insert(0, (("saver0", BUILTIN),), own.predictions, own.scores, own.cost)
