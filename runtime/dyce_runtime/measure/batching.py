"""How many samples should run at once, and when those that stay should be moved together: measured on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from dyce_runtime.bundle.manifest import Manifest, Network
from dyce_runtime.bundle.structure import bodies
from dyce_runtime.execution.contracts import Lane
from dyce_runtime.execution.routing import route
from dyce_runtime.execution.session import Session
from dyce_runtime.inputs.images import Images, count_of, rows_of

_ROUNDS = 15


def measure_best_batch(session: Session, images: Images) -> int:
    """In chunks of how many samples a call with these images is answered soonest: a power of two, or all at once.

    The active configuration counts, since chunks shrink where samples leave. A larger one keeps more threads busy and
    pays each call for more samples; the activations of a smaller one stay in the processor's caches.

    Args:
        images: a batch.
    """
    inputs = session.inputs(images)
    plan, classes = session.plan(session.configuration), session.manifest.model.num_classes
    count = count_of(inputs)
    sizes = [*(1 << k for k in range((count - 1).bit_length())), count]
    seconds = np.empty((_ROUNDS, len(sizes)))
    for turn, column in np.ndindex(*seconds.shape):
        size, start = sizes[column], time.perf_counter()
        for first in range(0, count, size):
            chunk = rows_of(inputs, slice(first, first + size))
            with session.device.lane(size) as lane:
                route(plan, lane, chunk, count_of(chunk), classes)
        seconds[turn, column] = time.perf_counter() - start
    # Relative to the round, since a shared machine is slow for some rounds.
    relative = np.median(seconds / seconds.mean(axis=1, keepdims=True), axis=0)
    return sizes[int(relative.argmin())]


def measure_compaction(session: Session, images: Images) -> dict[str, int]:
    """For every exit within a network, how many samples have to have left for the rest to be moved together.

    Moving k samples takes a + c k; the segment after it then takes b k less. It pays from k = a / (b - c) on; if a
    segment hardly takes less for fewer samples, never, which is one more than there are.

    Args:
        images: a batch of at least 2.
    """
    inputs, manifest = session.inputs(images), session.manifest
    found, count = {}, count_of(inputs)
    for network in manifest.networks:
        name = network.inputs[0].tensor
        for exit, after in pairwise(network.exits):
            with session.device.lane(count) as lane:
                stretch = _Stretch(manifest, network, exit, after, lane)
                own = inputs[name]
                one, half = (stretch.moving(own, k) for k in (1, count // 2))
                per_sample = (stretch.after(own) - stretch.after(own[: count - count // 2])) / (count // 2)
            per_move = max(0.0, (half - one) / max(1, count // 2 - 1))
            gain = per_sample - per_move
            never = count + 1
            found[exit] = min(never, max(1, int(np.ceil((one - per_move) / gain - 1e-6)))) if gain > 0 else never
    return found


class _Stretch:
    """A network up to an exit, and the segment after it."""

    def __init__(self, manifest: Manifest, network: Network, exit: str, after: str, lane: Lane) -> None:
        self._name, self._lane = network.inputs[0].tensor, lane
        own = bodies(manifest)
        until = network.exits[: network.exits.index(exit) + 1]
        self._before = [piece.id for one in until for piece in own[one]]
        self._next = own[after][0].id

    def moving(self, images: NDArray[np.float32], moved: int) -> float:
        """Seconds that it takes to move samples after the exit."""
        count = len(images)
        places, sources = np.arange(moved), np.arange(count - moved, count)
        return self._median(images, lambda: self._lane.compact(sources, places, count - moved))

    def after(self, images: NDArray[np.float32]) -> float:
        """Seconds that the segment after the exit takes."""
        return self._median(images, lambda: self._lane.run(self._next))

    def _median(self, images: NDArray[np.float32], run: Callable[[], object]) -> float:
        seconds = []
        for _ in range(_ROUNDS):
            self._lane.put(images, self._name)
            for segment in self._before:
                self._lane.run(segment)
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
        return float(np.median(seconds))
