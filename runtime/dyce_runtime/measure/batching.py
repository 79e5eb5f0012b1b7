"""Measure on this machine which chunk size is the fastest, and from when on compacting a batch saves time."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise

import numpy as np

from dyce_runtime.bundle.manifest import Manifest, Network
from dyce_runtime.execution.contracts import Device, ExecutionContext
from dyce_runtime.execution.routing import route
from dyce_runtime.execution.session import Session
from dyce_runtime.execution.trace import chunks
from dyce_runtime.inputs.images import Images, Inputs, count_of, rows_of
from dyce_runtime.program.structure import bodies

_ROUNDS = 15


def measure_best_batch(session: Session, images: Images) -> int:
    """Return the chunk size with which a call with these images is fastest: a power of two, or all at once.

    The result depends on the active configuration, since chunks shrink when samples exit. A larger chunk keeps more
    threads busy and spreads the overhead of a call over more samples; the activations of a smaller one stay in the
    processor's caches.

    Args:
        session: an open session.
        images: a batch, as for a call of the session.
    """
    inputs = session.inputs(images)
    plan, classes = session.plan(session.configuration), session.manifest.model.num_classes
    count, most = count_of(inputs), session.device.max_rows
    sizes = [size for size in (*(1 << k for k in range((count - 1).bit_length())), count) if size <= most] or [most]
    seconds = np.empty((_ROUNDS, len(sizes)))
    for turn, column in np.ndindex(*seconds.shape):
        size, start = sizes[column], time.perf_counter()
        for rows in chunks(count, size):
            chunk = rows_of(inputs, rows)
            with session.device.context(size) as context:
                route(plan, context, chunk, rows.stop - rows.start, classes)
        seconds[turn, column] = time.perf_counter() - start
    # Times are relative to their round, since some rounds are slow on a shared machine.
    relative = np.median(seconds / seconds.mean(axis=1, keepdims=True), axis=0)
    return sizes[int(relative.argmin())]


def measure_compaction(session: Session, images: Images) -> dict[str, int]:
    """Measure, for every exit within a network, how many samples must have exited for compacting to save time.

    Moving k samples takes a + c k seconds, and the next segment then takes b k seconds less, so compacting saves time
    from k = a / (b - c) on. If a segment hardly gets faster with fewer samples, the result is one more than the number
    of samples, which means never.

    Args:
        session: an open session.
        images: a batch of at least 2, as for a call of the session.

    Returns:
        exit id to number of samples.
    """
    manifest = session.manifest
    inputs = rows_of(session.inputs(images), slice(0, session.device.max_rows))
    found: dict[str, int] = {}
    count = count_of(inputs)
    if count < 2:  # all that the device can hold
        return {exit: count + 1 for network in manifest.networks for exit in network.exits[:-1]}
    for network in manifest.networks:
        for exit, after in pairwise(network.exits):
            boundary = _Boundary(session.device, manifest, network, exit, after, inputs)
            one, half = (boundary.moving(count, k) for k in (1, count // 2))
            per_sample = (boundary.after(count) - boundary.after(count - count // 2)) / (count // 2)
            per_move = max(0.0, (half - one) / max(1, count // 2 - 1))
            gain = per_sample - per_move
            never = count + 1
            found[exit] = min(never, max(1, int(np.ceil((one - per_move) / gain - 1e-6)))) if gain > 0 else never
    return found


class _Boundary:
    """An exit within a network, with the segments before it and the segment after it."""

    def __init__(
        self, device: Device, manifest: Manifest, network: Network, exit: str, after: str, inputs: Inputs
    ) -> None:
        self._device, self._inputs = device, {input.tensor: inputs[input.tensor] for input in network.inputs}
        own = bodies(manifest)
        until = network.exits[: network.exits.index(exit) + 1]
        self._before = [piece.id for one in until for piece in own[one]]
        self._next = own[after][0]

    def moving(self, count: int, moved: int) -> float:
        """Return the seconds that it takes to compact ``count`` samples by moving ``moved`` of them."""
        order = np.arange(count - moved)
        order[:moved] = np.arange(count - moved, count)
        return self._median(count, lambda context: context.keep(order, self._next.reads))

    def after(self, count: int) -> float:
        """Return the seconds that the segment after the exit takes for ``count`` samples."""
        return self._median(count, lambda context: context.run(self._next.id))

    def _median(self, count: int, run: Callable[[ExecutionContext], object]) -> float:
        """Return the median seconds of ``run``, called after the segments before the exit have finished."""
        seconds = []
        for _ in range(_ROUNDS):
            with self._device.context(count) as context:
                for name, images in self._inputs.items():
                    context.set_input(name, images[:count])
                for segment in self._before:
                    context.run(segment)
                context.wait()
                start = time.perf_counter()
                run(context)
                context.wait()
                seconds.append(time.perf_counter() - start)
        return float(np.median(seconds))
