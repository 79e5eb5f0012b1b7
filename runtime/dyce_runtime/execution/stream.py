"""Run a stream of samples: every section of a plan runs full batches, filled up with samples that wait for it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeAlias

import numpy as np

from dyce_runtime.bundle.manifest import CONFIDENCE, LABEL, LOGITS
from dyce_runtime.execution.contracts import Device, ExecutionContext, Parked
from dyce_runtime.execution.plan import Bring, LeaveAt, Plan, Stage, Step
from dyce_runtime.execution.routing import Result, compacting, invalid_scores, run_step
from dyce_runtime.inputs.images import Images, Inputs
from dyce_runtime.program.rule import leaves

Admit: TypeAlias = Callable[[Images], "tuple[Plan, Inputs]"]
Done: TypeAlias = Callable[[Result, float], None]


class _Section:
    """A part of a plan between two places where samples may wait: its inputs, and the steps up to the next exit.

    Attributes:
        live: the tensors that waiting samples keep; empty if the section only reads inputs.
        inputs: the inputs that are read at its start.
        steps: what it runs.
        leave: the exit at its end; None if a network ends without an exit that is on.
    """

    def __init__(self, live: tuple[str, ...], inputs: tuple[Bring, ...], steps: tuple[Step, ...]) -> None:
        self.live, self.inputs, self.steps = live, inputs, steps
        self.leave = steps[-1] if steps and isinstance(steps[-1], LeaveAt) else None


def _sections_of(plan: Plan) -> list[_Section]:
    """Cut a plan after each of its exits."""
    found: list[_Section] = []
    for stage in plan.stages:
        found += _of_stage(stage)
    return found


def _of_stage(stage: Stage) -> Iterator[_Section]:
    inputs, live, steps = stage.inputs, stage.inputs[-1].live, []
    for step in stage.steps:
        steps.append(step)
        if isinstance(step, LeaveAt):
            yield _Section(live, inputs, tuple(steps))
            inputs, live, steps = (), step.live, []
    if steps:
        yield _Section(live, inputs, tuple(steps))


class _Waiting:
    """A queue of the samples that wait for one section of one plan, in the groups in which they were gathered."""

    def __init__(self, plan: Plan, number: int, section: _Section) -> None:
        self.plan, self.number, self.section = plan, number, section
        self._parked: deque[tuple[list[int], Parked | None, int]] = deque()

    def __len__(self) -> int:
        return sum(len(numbers) - start for numbers, _, start in self._parked)

    @property
    def oldest(self) -> int:
        numbers, _, start = self._parked[0]
        return numbers[start]

    def fill(self, context: ExecutionContext, free: int) -> list[int]:
        """Move up to ``free`` samples into a context; return their numbers."""
        moved: list[int] = []
        while self._parked and len(moved) < free:
            numbers, parked, start = self._parked.popleft()
            stop = min(len(numbers), start + free - len(moved))
            if parked is not None:
                context.append(parked, start, stop)
            moved += numbers[start:stop]
            if stop < len(numbers):
                self._parked.appendleft((numbers, parked, stop))
        return moved

    def park(self, context: ExecutionContext, numbers: list[int]) -> None:
        """Add all samples of a context to the queue."""
        live = self.section.live
        self._parked.append((numbers, context.gather(np.arange(len(numbers)), live) if live else None, 0))


class Stream:
    """Runs a stream of samples and yields their results in order.

    A sample keeps the plan that was active when it was admitted. If the input raises, the samples that were admitted
    are finished first; then the error is raised.

    Args:
        device: the open pieces.
        admit: checks one sample; returns the plan that it runs, and its images (1, C, H, W) by the name of the input.
        done: called with the result of each sample and the seconds since it was admitted.
        batch: the most samples per run of a piece.
        in_flight: the most samples that are admitted and not yet yielded; raised to ``batch`` if it is lower.
    """

    def __init__(self, device: Device, admit: Admit, done: Done, batch: int, in_flight: int) -> None:
        self._device, self._admit, self._done = device, admit, done
        self._batch, self._most = min(batch, device.max_rows), max(batch, in_flight)
        self._plans: dict[int, tuple[Plan, list[_Section]]] = {}
        self._waiting: dict[tuple[int, int], _Waiting] = {}
        self._results: dict[int, Result] = {}
        self._admitted: dict[int, float] = {}
        self._inputs: dict[int, Inputs] = {}
        self._next = self._yielded = 0
        self._error: Exception | None = None

    def run(self, images: Iterable[Images]) -> Iterator[Result]:
        """Yield one result (N = 1) for every sample."""
        source, ended = iter(images), False
        while True:
            waiting = None if ended else self._full()
            if waiting is None and not ended and self._free():
                ended = not self._start(source)
            elif self._waiting:
                self._work(waiting or min(self._waiting.values(), key=lambda one: one.oldest), ended=ended)
            yield from self._ready()
            if ended and not self._waiting and not self._results:
                break
        if self._error is not None:
            raise self._error

    def _free(self) -> int:
        """Return how many samples may be admitted now."""
        return min(self._batch, self._most - (self._next - self._yielded))

    def _full(self) -> _Waiting | None:
        """Return the queue of the deepest section for which a full batch waits; None if there is none."""
        full = [waiting for waiting in self._waiting.values() if len(waiting) >= self._batch]
        return max(full, key=lambda waiting: waiting.number, default=None)

    def _start(self, source: Iterator[Images]) -> bool:
        """Admit samples and run them; return whether more may come."""
        arrived: dict[int, tuple[Plan, list[int]]] = {}
        count, free = 0, self._free()
        try:
            for image in islice(source, free):
                plan, self._inputs[self._next] = self._admit(image)
                arrived.setdefault(id(plan), (plan, []))[1].append(self._next)
                self._admitted[self._next] = time.perf_counter()
                self._next += 1
                count += 1
        except Exception as error:  # the source failed or a sample is invalid: earlier samples are finished first
            self._error = error
        ended = count < free
        for plan, numbers in arrived.values():
            with self._device.context(self._batch) as context:
                self._set_inputs(context, self._sections(plan)[0], numbers)
                self._run_from(plan, 0, context, numbers, ended=ended)
        return not ended

    def _work(self, waiting: _Waiting, *, ended: bool) -> None:
        with self._device.context(self._batch) as context:
            numbers = self._fill(waiting, context, [])
            self._run_from(waiting.plan, waiting.number, context, numbers, ended=ended)

    def _run_from(self, plan: Plan, number: int, context: ExecutionContext, numbers: list[int], *, ended: bool) -> None:
        """Run sections from ``number`` on while batches are full, or if no more samples come; otherwise park them."""
        sections = self._sections(plan)
        while True:
            numbers = self._step(plan, sections[number], context, numbers)
            if not numbers:
                return
            number += 1
            waiting = self._waiting.setdefault((id(plan), number), _Waiting(plan, number, sections[number]))
            if len(numbers) + len(waiting) < self._batch and not ended:
                waiting.park(context, numbers)
                return
            numbers = self._fill(waiting, context, numbers)

    def _fill(self, waiting: _Waiting, context: ExecutionContext, numbers: list[int]) -> list[int]:
        """Append waiting samples to a context until it is full; return the numbers of all samples in it."""
        numbers = numbers + waiting.fill(context, self._batch - len(numbers))
        self._set_inputs(context, waiting.section, numbers)
        if not len(waiting):
            self._waiting.pop((id(waiting.plan), waiting.number), None)
        return numbers

    def _set_inputs(self, context: ExecutionContext, section: _Section, numbers: list[int]) -> None:
        """Set the inputs of a section, if a network starts there."""
        for bring in section.inputs:
            images = np.concatenate([self._inputs[number][bring.input] for number in numbers])
            context.set_input(bring.input, images)

    def _sections(self, plan: Plan) -> list[_Section]:
        """Return the sections of a plan. The plan is stored with them, so that its id stays unique."""
        if id(plan) not in self._plans:
            self._plans[id(plan)] = plan, _sections_of(plan)
        return self._plans[id(plan)][1]

    def _step(self, plan: Plan, section: _Section, context: ExecutionContext, numbers: list[int]) -> list[int]:
        """Run one section; return the samples that remain, in the order in which the context then holds them."""
        for step in section.steps:
            if not isinstance(step, LeaveAt):
                run_step(context, step)
        leave = section.leave
        if leave is None:
            return numbers
        score = context.read(CONFIDENCE)[0].copy()
        if not score.min() > 0:
            raise invalid_scores(plan, leave.piece, numbers[int((score > 0).argmin())])
        leaving = leaves(score, leave.threshold)
        if leaving.any():
            logits, label = context.read(LOGITS, LABEL)
        for place in np.flatnonzero(leaving).tolist():
            one = slice(place, place + 1)
            result = Result(
                logits[one].copy(),
                label[one].copy(),
                score[one].copy(),
                leave.exits.copy(),
                plan.configuration,
                plan.exit_ids,
            )
            self._done(result, time.perf_counter() - self._admitted.pop(numbers[place]))
            self._results[numbers[place]] = result
            del self._inputs[numbers[place]]
        stay = ~leaving
        order = compacting(stay)
        if 0 < len(order) < len(numbers):
            context.keep(order, leave.live)
        return [numbers[place] for place in order.tolist()]

    def _ready(self) -> Iterator[Result]:
        while self._yielded in self._results:
            result = self._results.pop(self._yielded)
            self._yielded += 1
            yield result
