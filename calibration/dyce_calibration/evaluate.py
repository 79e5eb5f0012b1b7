"""What a configuration would do, from records alone: no model runs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dyce_calibration.records import Costs, Records, exit_order
from dyce_runtime.configuration import ExitSetting, Figures
from dyce_runtime.manifest import FINAL


def evaluate(records: Records, costs: Costs, exits: Mapping[str, ExitSetting]) -> Figures:
    """Accuracy, loss, relative cost and exit shares of a configuration on recorded samples.

    A sample leaves at the first enabled exit whose confidence is strictly above its threshold (both float32). It
    pays the backbone up to there and every enabled head on the way; at the end, the backbone and all of them.
    """
    order = exit_order(costs)
    count = len(records)
    waiting = np.ones(count, np.bool_)
    correct, paid, shares, heads_cost = 0, 0.0, [], 0.0
    for exit in order:
        if exit == FINAL:
            column, leave = len(records.heads), waiting.copy()
        elif exit not in exits:
            shares.append(0.0)
            continue
        else:
            setting = exits[exit]
            column = records.column(exit, setting.head)
            heads_cost += costs.heads[exit, setting.head]
            leave = waiting & (records.confidences[:, column] > np.float32(setting.threshold))
        taken = int(leave.sum())
        correct += int((records.predictions[leave, column] == records.labels[leave]).sum())
        paid += taken * (costs.backbone[exit] + heads_cost)
        shares.append(taken / count)
        waiting &= ~leave
    accuracy = correct / count
    base = float((records.predictions[:, -1] == records.labels).mean())
    return Figures(
        accuracy=accuracy,
        loss=base - accuracy,
        cost=paid / (count * costs.backbone[FINAL]),
        samples=count,
        share_per_exit=tuple(shares),
    )
