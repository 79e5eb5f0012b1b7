"""How many samples should run at once, and when those that stay should be moved together: measured on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from dyce_runtime.contracts import Lane
from dyce_runtime.manifest import FINAL
from dyce_runtime.routing import route
from dyce_runtime.session import Session

_ROUNDS = 15


def measure_best_batch(session: Session, images: NDArray[np.float32]) -> int:
    """In chunks of how many samples a call with these images is answered soonest: a power of two, or all at once.

    The active configuration counts, since chunks shrink where samples leave. A larger one keeps more threads busy and
    pays each call for more samples; the activations of a smaller one stay in the processor's caches.

    Args:
        images: a batch (N, C, H, W).
    """
    plan, classes = session.plan(session.configuration), session.manifest.model.num_classes
    sizes = [*(1 << k for k in range((len(images) - 1).bit_length())), len(images)]
    seconds = np.empty((_ROUNDS, len(sizes)))
    for turn, column in np.ndindex(*seconds.shape):
        size, start = sizes[column], time.perf_counter()
        for first in range(0, len(images), size):
            chunk = images[first : first + size]
            with session.device.lane(len(chunk)) as lane:
                lane.put(chunk)
                route(plan, lane, classes)
        seconds[turn, column] = time.perf_counter() - start
    # Relative to the round, since a shared machine is slow for some rounds.
    relative = np.median(seconds / seconds.mean(axis=1, keepdims=True), axis=0)
    return sizes[int(relative.argmin())]


def measure_compaction(session: Session, images: NDArray[np.float32]) -> dict[str, int]:
    """For every exit, how many samples have to have left for the rest to be moved together.

    Moving k samples takes a + c k; the segment behind then takes b k less. It pays from k = a / (b - c) on; if a
    segment hardly takes less for fewer samples, never, which is one more than there are.

    Args:
        images: a batch (N, C, H, W), N at least 2.
    """
    found, count = {}, len(images)
    for index, exit in enumerate(session.manifest.exits):
        if exit.id == FINAL:
            break
        with session.device.lane(count) as lane:
            one, half = (_moving(lane, images, index, k) for k in (1, count // 2))
            per_sample = (_behind(lane, images, index, count) - _behind(lane, images, index, count - count // 2)) / (
                count // 2
            )
        per_move = max(0.0, (half - one) / max(1, count // 2 - 1))
        gain = per_sample - per_move
        found[exit.id] = min(count + 1, max(1, int(np.ceil((one - per_move) / gain - 1e-6)))) if gain > 0 else count + 1
    return found


def _moving(lane: Lane, images: NDArray[np.float32], index: int, moved: int) -> float:
    """Seconds that it takes to move samples behind an exit."""
    count = len(images)
    places, sources = np.arange(moved), np.arange(count - moved, count)
    return _median(lane, images, index, lambda: lane.compact(sources, places, count - moved))


def _behind(lane: Lane, images: NDArray[np.float32], index: int, rows: int) -> float:
    """Seconds that the segment behind an exit takes for so many samples."""
    return _median(lane, images[:rows], index, lambda: lane.run(f"segment_{index + 1:02d}"))


def _median(lane: Lane, images: NDArray[np.float32], index: int, run: Callable[[], object]) -> float:
    seconds = []
    for _ in range(_ROUNDS):
        lane.put(images)
        for k in range(index + 1):
            lane.run(f"segment_{k:02d}")
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))
