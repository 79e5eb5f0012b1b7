"""Search: from records to configurations. One shared threshold for all exits, for now."""

from __future__ import annotations

import numpy as np

from dyce_calibration.evaluate import evaluate
from dyce_calibration.records import Costs, Records
from dyce_runtime.configuration import FULL, Configurations, Entry, ExitSetting, float32_midpoint

# The most accuracy that a named configuration may lose against the full model, on the search split.
ALLOWED_LOSS = {"accurate": 0.005, "balanced": 0.01, "fast": 0.02}
_MAX_THRESHOLDS = 1000


def search(records: Records, costs: Costs) -> Configurations:
    """The named configurations and the front, chosen on the split ``search`` and reported on ``test`` as well.

    For every name the cheapest shared threshold within the allowed loss; ``full`` where none is cheaper.
    """
    chosen_on, reported_on = records.of_split("search"), records.of_split("test")
    settings = [{}, *_shared_thresholds(chosen_on)]
    candidates = [Entry(exits=exits, search=evaluate(chosen_on, costs, exits)) for exits in settings]
    named = {FULL: candidates[0]}
    for name, loss in ALLOWED_LOSS.items():
        # Counted in samples, so that a loss of exactly the allowance is allowed in floating point, too.
        fitting = [c for c in candidates if _search_loss(c) <= round(loss * len(chosen_on), 9)]
        named[name] = min(fitting, key=lambda c: c.search.cost)  # type: ignore[union-attr]

    def with_test(entry: Entry) -> Entry:
        return Entry(exits=entry.exits, search=entry.search, test=evaluate(reported_on, costs, entry.exits))

    return Configurations(
        named={name: with_test(entry) for name, entry in named.items()},
        front=tuple(with_test(entry) for entry in _front(candidates)),
    )


def _search_loss(entry: Entry) -> int:
    assert entry.search is not None
    return round(entry.search.loss * entry.search.samples)


def _shared_thresholds(records: Records) -> list[dict[str, ExitSetting]]:
    """Settings with every exit on at one threshold, midway between adjacent distinct confidences."""
    confidences = np.unique(records.confidences[:, :-1])
    lower = np.arange(len(confidences) - 1)
    if len(lower) > _MAX_THRESHOLDS:
        lower = np.unique(np.linspace(0, len(lower) - 1, _MAX_THRESHOLDS).astype(int))
    thresholds = [float32_midpoint(confidences[i], confidences[i + 1]) for i in lower]
    return [{exit: ExitSetting(head, threshold) for exit, head in records.heads} for threshold in thresholds]


def _front(candidates: list[Entry], most: int = 64) -> list[Entry]:
    """The candidates that no other beats in both cost and accuracy, cheapest first, thinned to ``most``."""
    front: list[Entry] = []
    for entry in sorted(candidates, key=lambda c: (c.search.cost, -c.search.accuracy)):  # type: ignore[union-attr]
        if not front or entry.search.accuracy > front[-1].search.accuracy:  # type: ignore[union-attr]
            front.append(entry)
    if len(front) <= most:
        return front
    return [front[i] for i in np.unique(np.linspace(0, len(front) - 1, most).round().astype(int))]
