"""A stream of samples: every segment runs full batches, filled up with samples that wait for it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeAlias

import numpy as np

from dyce_runtime.execution.contracts import Device, Handle, Lane
from dyce_runtime.execution.plan import Plan
from dyce_runtime.execution.routing import Result, invalid_scores
from dyce_runtime.inputs.images import Images, Inputs

Admit: TypeAlias = Callable[[Images], "tuple[Plan, Inputs]"]
Done: TypeAlias = Callable[[Result, float], None]


class _Room:
    """Samples that wait for one step of one plan, the longest waiting first, each as it was taken from a lane."""

    def __init__(self, plan: Plan, step: int) -> None:
        self.plan, self.step = plan, step
        self.image = plan.steps[step].image
        self.waiting: deque[tuple[int, Handle]] = deque()

    @property
    def oldest(self) -> int:
        return self.waiting[0][0]

    def fill(self, lane: Lane, free: int) -> list[int]:
        """Move samples into a lane; returns whose they are."""
        moved = [self.waiting.popleft() for _ in range(min(free, len(self.waiting)))]
        for _, handle in moved:
            lane.add(handle)
        return [number for number, _ in moved]

    def park(self, lane: Lane, numbers: list[int]) -> None:
        """Take all samples out of a lane."""
        for place, number in enumerate(numbers):
            self.waiting.append((number, lane.take(np.array([place]))))


class Stream:
    """Runs samples and yields their results in order.

    A sample keeps the plan that was active when it was admitted. When the input ends or breaks, what was admitted is
    still finished; then the error is raised.

    Args:
        admit: checks one sample; says which plan it runs, and its images (1, C, H, W) by the name of the input.
        done: called with the result of each sample and the seconds since it was admitted.
        batch: samples per run of a piece, at most.
        in_flight: samples admitted and not yet yielded, at most; at least ``batch``.
    """

    def __init__(self, device: Device, admit: Admit, done: Done, batch: int, in_flight: int) -> None:
        self._device, self._admit, self._done = device, admit, done
        self._batch, self._most = batch, max(batch, in_flight)
        self._rooms: dict[tuple[int, int], _Room] = {}
        self._results: dict[int, Result] = {}
        self._admitted: dict[int, float] = {}
        self._inputs: dict[int, Inputs] = {}
        self._next = self._yielded = 0
        self._error: Exception | None = None

    def run(self, images: Iterable[Images]) -> Iterator[Result]:
        """Yield one result (N = 1) for every sample."""
        source, ended = iter(images), False
        while True:
            room = None if ended else self._full_room()
            if room is None and not ended and self._free():
                ended = not self._start(source)
            elif self._rooms:
                self._work(room or min(self._rooms.values(), key=lambda room: room.oldest), ended=ended)
            yield from self._ready()
            if ended and not self._rooms and not self._results:
                break
        if self._error is not None:
            raise self._error

    def _free(self) -> int:
        """How many samples may be admitted."""
        return min(self._batch, self._most - (self._next - self._yielded))

    def _full_room(self) -> _Room | None:
        """The deepest in which a whole batch waits."""
        full = [room for room in self._rooms.values() if len(room.waiting) >= self._batch]
        return max(full, key=lambda room: room.step, default=None)

    def _start(self, source: Iterator[Images]) -> bool:
        """Admit samples and run the first step with them; False when no more will come."""
        arrived: dict[int, tuple[Plan, list[int]]] = {}
        count, free = 0, self._free()
        try:
            for image in islice(source, free):
                plan, self._inputs[self._next] = self._admit(image)
                arrived.setdefault(id(plan), (plan, []))[1].append(self._next)
                self._admitted[self._next] = time.perf_counter()
                self._next += 1
                count += 1
        except Exception as error:  # of the source, or a sample that is refused: what came before is finished first
            self._error = error
        ended = count < free
        for plan, numbers in arrived.values():
            with self._device.lane(self._batch) as lane:
                self._put(lane, numbers, plan.steps[0].image)
                self._run_from(plan, 0, lane, numbers, ended=ended)
        return not ended

    def _work(self, room: _Room, *, ended: bool) -> None:
        with self._device.lane(self._batch) as lane:
            numbers = self._fill(room, lane, [])
            self._run_from(room.plan, room.step, lane, numbers, ended=ended)

    def _run_from(self, plan: Plan, index: int, lane: Lane, numbers: list[int], *, ended: bool) -> None:
        """Run step after step while the lane is full, or no other samples will come; otherwise they wait for these."""
        while True:
            numbers = self._step(plan, index, lane, numbers)
            if not numbers:
                return
            index += 1
            room = self._rooms.setdefault((id(plan), index), _Room(plan, index))
            if len(numbers) + len(room.waiting) < self._batch and not ended:
                room.park(lane, numbers)
                return
            numbers = self._fill(room, lane, numbers)

    def _fill(self, room: _Room, lane: Lane, numbers: list[int]) -> list[int]:
        """Fill a lane up with samples that wait, behind those that are in it; returns whose they all are."""
        numbers = numbers + room.fill(lane, self._batch - len(numbers))
        self._put(lane, numbers, room.image)
        if not room.waiting:
            self._rooms.pop((id(room.plan), room.step), None)
        return numbers

    def _put(self, lane: Lane, numbers: list[int], name: str | None) -> None:
        """The images of samples, where a network starts."""
        if name is not None:
            lane.put(np.concatenate([self._inputs[number][name] for number in numbers]), name)

    def _step(self, plan: Plan, index: int, lane: Lane, numbers: list[int]) -> list[int]:
        """Run one step; returns the samples that stay, in the order in which the lane then holds them."""
        step = plan.steps[index]
        for piece in step.body:
            lane.run(piece)
        confidence = lane.decide(step.head)
        if not confidence.min() > 0:
            raise invalid_scores(plan, step, numbers[int((confidence > 0).argmin())])
        leave = np.ones(len(numbers), np.bool_) if step is plan.steps[-1] else confidence > step.threshold
        logits, label = lane.answers()
        for place in np.flatnonzero(leave).tolist():
            one = slice(place, place + 1)
            result = Result(
                logits[one].copy(),
                label[one].copy(),
                confidence[one].copy(),
                step.exits.copy(),
                plan.configuration,
                plan.exit_ids,
            )
            self._done(result, time.perf_counter() - self._admitted.pop(numbers[place]))
            self._results[numbers[place]] = result
            del self._inputs[numbers[place]]
        stay = np.flatnonzero(~leave)
        if 0 < len(stay) < len(numbers):
            lane.compact(stay, np.arange(len(stay)), len(stay))
        return [numbers[place] for place in stay.tolist()]

    def _ready(self) -> Iterator[Result]:
        while self._yielded in self._results:
            result = self._results.pop(self._yielded)
            self._yielded += 1
            yield result
