"""Measure the energy per sample of the uncut model and of configurations, for a benchmark with a meter."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dyce_runtime.errors import TargetError
from dyce_runtime.execution.session import Session
from dyce_runtime.inputs.datasets import Dataset
from dyce_runtime.inputs.images import all_of
from dyce_runtime.measure.contenders import Contender
from dyce_runtime.measure.energy import Meter
from dyce_runtime.measure.piece_costs import at_least_0, idle_watts, joules_of

# Energy is measured by repeated passes over 64 images (or one batch, if that is larger), in 3 rounds.
_PICTURES = 64
_ROUNDS = 3
_log = logging.getLogger("dyce_runtime")


def add_energies(
    session: Session,
    data: Dataset,
    rows: NDArray[np.int64],
    contenders: Sequence[Contender],
    parts: Sequence[dict[str, Any]],
    find_meter: Callable[[], Meter] | None,
) -> str | None:
    """Add ``joules_per_sample`` to all parts of a benchmark document, if a meter is found.

    The last configuration stays active.

    Args:
        session: an open session.
        data: the images.
        rows: indices of the images to choose from.
        contenders: the uncut model and the configurations of the document, in its order.
        parts: the parts of the document, one per batch size, which are changed in place.
        find_meter: returns a meter, or raises TargetError; None measures nothing.

    Returns:
        the source that the meter reads; None if nothing was measured.
    """
    try:
        if find_meter is None:
            return None
        meter = find_meter()
    except TargetError as error:
        _log.debug("no energy is measured: %s", error.message)
        return None
    try:
        with meter:
            idle = idle_watts(meter)
            measured = [_energies(session, data, rows, contenders, part["batch"], meter, idle) for part in parts]
    except TargetError as error:
        _log.warning("no energy was measured: %s", error.message)
        return None
    for part, joules in zip(parts, measured, strict=True):
        for entry, value in zip([part["uncut"], *part["configurations"]], joules, strict=True):
            entry["joules_per_sample"] = at_least_0(entry.get("name", "uncut model"), value)
    return meter.source


def _energies(
    session: Session,
    data: Dataset,
    rows: NDArray[np.int64],
    contenders: Sequence[Contender],
    batch: int,
    meter: Meter,
    idle: float,
) -> list[float]:
    """Return the joules per sample of each contender above the idle machine; noise may make them negative.

    The images are evenly spread over the data, so that the shares of the exits taken are about those of the benchmark.
    """
    count = max(1, min(_PICTURES, len(rows)) // batch)
    chosen = rows[np.linspace(0, len(rows) - 1, count * batch).astype(int)]
    batches = [all_of(session.preprocess(data.images(part))) for part in np.split(chosen, count)]

    def run_over_all(contender: Contender) -> None:
        for images in batches:
            contender.run(images)

    found: list[list[float]] = [[] for _ in contenders]
    for _ in range(_ROUNDS):
        for joules, contender in zip(found, contenders, strict=True):
            if contender.configuration is not None:
                session.use(contender.configuration)
            joules.append(joules_of(meter, idle, partial(run_over_all, contender)) / len(chosen))
    return [float(np.median(values)) for values in found]
