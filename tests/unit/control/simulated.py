"""A session on a machine whose calls take as long as a test says, and a governor that turns its knob."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from dyce_runtime import Session
from dyce_runtime.bundle.configuration import Configurations, Entry, Figures
from dyce_runtime.control.governor import LatencyGovernor
from dyce_runtime.execution.plan import LeaveAt
from tests.bundles import CLASSES, NAMED, make_images

IMAGE = make_images(1)
# Search figures: accuracy and cost. A call of the full model takes 10 ms where a test says nothing else.
FIGURES = {"fast": (0.7, 0.2), "balanced": (0.8, 0.4), "accurate": (0.85, 0.6), "full": (0.9, 1.0)}
COSTS = {name: cost for name, (_, cost) in FIGURES.items()}
# Calls after which a governor with the options below has seen enough for a step up.
BEAT = 20


class Machine:
    """A target that computes nothing: a call takes as long as a test says, on a clock of its own.

    Attributes:
        now: seconds since the start.
        takes: seconds of the next calls.
        readings: how often a call looked at the clock.
        during: runs in the middle of a call.
    """

    name, spans, engines, rows, max_rows = "machine", False, False, 1, 1 << 16

    def __init__(self) -> None:
        self.now, self.takes, self.readings = 0.0, 0.0, 0
        self.during: Callable[[], object] = lambda: None

    def look(self) -> float:
        self.readings += 1
        return self.now

    def best_batch(self, spec, macs) -> int:
        return 64

    def open(self, pieces, tensors, spec) -> Machine:
        return self

    def context(self, rows: int) -> Machine:
        return self

    def set_input(self, name, array) -> None:
        takes, during, self.during = self.takes, self.during, lambda: None
        during()
        self.now += takes

    def run_until_exit(self, steps):
        return next(step for step in steps if isinstance(step, LeaveAt)), np.ones(1, np.float32)

    def read(self, *names):
        return [np.zeros((1, CLASSES), np.float32), np.zeros(1, np.int64)]

    def close(self) -> None: ...

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None: ...


class Simulation:
    """A session on a machine, and a governor."""

    def __init__(self, session: Session, machine: Machine) -> None:
        self.session, self.machine = session, machine
        self.costs = dict(COSTS)

    def govern(self, p95_ms: float, **options) -> LatencyGovernor:
        options = {"window": 4 * BEAT, "dwell_s": 1e-9, "clock": lambda: self.machine.now, **options}
        return LatencyGovernor(self.session, p95_ms, **options)

    def call(self, calls: int, load: float = 1.0, noise: float = 0.0, seed: int = 0) -> list[str]:
        """The names of the configurations that answered; ``noise`` is the deviation of the latency's logarithm."""
        factors = np.exp(np.random.default_rng(seed).normal(0, noise, calls)) if noise else np.ones(calls)
        names, self.seconds = [], []
        for factor in factors:
            self.machine.takes = 0.01 * load * factor * self.costs[self.session.configuration.name]
            names.append(self.session(IMAGE).configuration.name)
            self.seconds.append(self.machine.takes)
        return names


def figures(accuracy: float, cost: float, shares: tuple[float, ...] = ()) -> Figures:
    return Figures(accuracy, 0.0, cost, 100, shares)


def priced(known: dict[str, tuple[float, float]]) -> Configurations:
    return Configurations(named={name: Entry(NAMED[name], search=figures(*known[name])) for name in known})


def switches(names: list[str]) -> int:
    return sum(a != b for a, b in pairwise(names))
