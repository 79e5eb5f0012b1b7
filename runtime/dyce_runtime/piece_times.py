"""Times of every segment and head on this machine: what a search needs to weigh milliseconds."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dyce_runtime.configuration import Configuration, ExitSetting
from dyce_runtime.manifest import FINAL
from dyce_runtime.session import Session

_WARM_UP_CALLS = 5


@dataclass(frozen=True)
class PieceTimes:
    """Median milliseconds for one call.

    Attributes:
        segments: exit id, ``final`` last, to the time of the segment that ends there.
        heads: (exit id, head type) to the time of the head, the decision behind it included.
        uncut: of the uncut model.
    """

    segments: dict[str, float]
    heads: dict[tuple[str, str], float]
    uncut: float


def measure_pieces(session: Session, batches: Iterable[NDArray[np.float32]]) -> PieceTimes:
    """Time all pieces in the order in which a call runs them, then the uncut model, batch after batch.

    What the session itself adds (routing, results) is measured with every exit on and none ever taken, and
    counted with the heads, as it falls away with them.

    Args:
        batches: preprocessed inputs (N, C, H, W), of one size.
    """
    exits = session.manifest.exits
    never = {exit.id: ExitSetting(exit.heads[0].type, 1.0) for exit in exits if exit.id != FINAL}
    seconds: dict[object, list[float]] = defaultdict(list)
    before = session.configuration
    session.use(Configuration("never", never))
    try:
        for number, images in enumerate(batches):
            for _ in range(_WARM_UP_CALLS if number == 0 else 0):
                _walk_and_call(session, images)
            for key, value in _walk_and_call(session, images).items():
                seconds[key].append(value)
    finally:
        session.use(before)
    ms = {key: float(np.median(values)) * 1e3 for key, values in seconds.items()}
    walked = sum(ms[exit.id] for exit in exits) + sum(ms[exit, on.head] for exit, on in never.items())
    routing = max(0.0, ms["call"] - walked) / len(exits)
    heads = {(exit.id, head.type): ms[exit.id, head.type] + routing for exit in exits[:-1] for head in exit.heads}
    return PieceTimes({exit.id: ms[exit.id] for exit in exits}, heads, ms["uncut"])


def _walk_and_call(session: Session, images: NDArray[np.float32]) -> dict[object, float]:
    return {**_walk(session, images), "call": _timed(session, images), "uncut": _uncut(session, images)}


def _walk(session: Session, images: NDArray[np.float32]) -> dict[object, float]:
    """The seconds of every segment and head, run one after another."""
    device = session.device
    found: dict[object, float] = {}
    start = time.perf_counter()
    live = [device.put(images)]
    for index, exit in enumerate(session.manifest.exits):
        live = device.run(f"segment_{index:02d}", live)
        if exit.id == FINAL:
            device.fetch(live[1])
        found[exit.id] = time.perf_counter() - start
        for head in exit.heads if exit.id != FINAL else ():
            start = time.perf_counter()
            device.fetch(device.run(head.piece, live)[1])
            found[exit.id, head.type] = time.perf_counter() - start
        start = time.perf_counter()
    return found


def _timed(session: Session, images: NDArray[np.float32]) -> float:
    start = time.perf_counter()
    session(images)
    return time.perf_counter() - start


def _uncut(session: Session, images: NDArray[np.float32]) -> float:
    start = time.perf_counter()
    session.run_uncut(images)
    return time.perf_counter() - start
