"""A latency governor: keeps a session's latency under a limit by moving along the Pareto front."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import msgspec
import numpy as np

from dyce_runtime.arguments import is_real
from dyce_runtime.bundle.configuration import Configuration, Configurations, Entry, Figures
from dyce_runtime.bundle.manifest import Manifest
from dyce_runtime.errors import ConfigurationError, UsageError
from dyce_runtime.execution.plan import path_macs
from dyce_runtime.execution.routing import Result
from dyce_runtime.execution.session import Session
from dyce_runtime.process_bound import ProcessBound

_log = logging.getLogger("dyce_runtime")

# The configuration whose accuracy is the default lower limit.
FLOOR = "fast"
_QUANTILE = 0.95
# Least ratio of the expected costs of two rungs: closer ones cannot be told apart by their latencies.
_APART = 1.1
# Fractions of the limit: the latency that a step down aims at, and the highest latency expected after a step up. Since
# neighbouring rungs are further apart than _ROOM is from 1, noise does not make the governor oscillate.
_AIM = 0.9
_ROOM = 0.95
# Up to this many slow calls may be chance, however few calls there were.
_CHANCE = 3
# The current latency is estimated from the last quarter of the window.
_RECENT = 4
# Time is counted in beats: a quarter of a window of calls, and at least ``dwell_s`` seconds. After a step up that had
# to be taken back, the governor waits for 8 beats before it tries again, and each further time for twice as many, ...
_FIRST_WAIT = 8
# ... until a configuration held for 4 times the last wait, ...
_GOOD_FOR = 4
# ... or the latency on the rung below falls to this fraction of its value at the last trial.
_RELIEF = 0.8


class _Rung(msgspec.Struct, frozen=True):
    """A configuration that the governor may choose.

    Attributes:
        accuracy, cost: on the search split, the cost relative to the full model.
        expected: 95 % quantile of the cost of a call, by the figures of the search; only ratios of it are meaningful.
    """

    configuration: Configuration
    accuracy: float
    cost: float
    expected: float


class _Trial(msgspec.Struct):
    """The last step up to a rung and its outcome. Times are in beats.

    Attributes:
        start: the beat of the step.
        below: the 95 % quantile of latency in seconds before the step, on the rung below.
        wait: beats between the last step back down and the next trial.
        until: the beat before which there is no trial, unless the latency falls.
    """

    start: int
    below: float
    wait: int = 0
    until: int = 0


class LatencyGovernor(ProcessBound):
    """Switches a session's active configuration such that 95 % of the calls stay under a latency limit.

    Its rungs are the configurations of the bundle that are Pareto-optimal in accuracy and in the 95 % quantile of the
    cost of a call, by the figures of the search. It starts with the most accurate one. When more than 5 % of the last
    calls took longer than the limit, it steps down, as far as their latency requires. When it expects the next more
    accurate configuration to stay under the limit, it steps up, one rung at a time; the wait before a step up is
    repeated grows each time that it had to be taken back.

    While it is open, :meth:`Session.use` raises. :meth:`close`, or the end of a ``with`` block, releases the session
    and keeps the configuration active that was chosen last. Any number of threads may call the session.
    """

    def __init__(
        self,
        session: Session,
        p95_ms: float,
        min_accuracy: float | str | None = FLOOR,
        *,
        batch: int = 1,
        window: int = 400,
        dwell_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take exclusive control of the session's active configuration, and activate the most accurate one.

        Args:
            session: an open session whose configuration nothing else controls.
            p95_ms: the limit for the 95 % quantile of the duration of a call, without preprocessing, in milliseconds.
            min_accuracy: the lowest accuracy of a configuration: a fraction on the search split, or the name of a
                configuration whose accuracy is meant. By default that of ``fast``, or of the least accurate named
                configuration if there is no ``fast``. None allows the whole front, which may include configurations
                with a very low accuracy.
            batch: samples per call that the application makes. With one, the quantile depends on the hardest samples;
                with many, it approaches the mean.
            window: number of calls that are evaluated together, at least 80. A quarter of them must pass before a step
                up.
            dwell_s: seconds that must pass before a step up as well, over 0.
            clock: returns monotonic seconds.

        Raises:
            UsageError: a number is out of range.
            ConfigurationError: the bundle has no searched configurations, none as accurate or none of that name, the
                heads are untrained, or something else controls the configuration.
        """
        if not (is_real(p95_ms) and math.isfinite(p95_ms) and p95_ms > 0):
            raise UsageError(f"the limit is {p95_ms} ms; expected a finite number over 0")
        if not all(map(is_real, (batch, window, dwell_s))) or not (batch >= 1 and window >= 80 and dwell_s > 0):
            raise UsageError(
                f"found batch {batch}, window {window}, dwell_s {dwell_s}; expected at least 1, at least 80 and over 0"
            )
        self._rungs = _ladder(session, _floor(session.bundle.configurations, min_accuracy), batch)
        self._limit = p95_ms / 1e3
        self._dwell = dwell_s
        self._clock = clock
        self._lock = threading.Lock()
        self._seconds: deque[float] = deque(maxlen=window)
        self._window, self._recent = window, window // _RECENT
        self._trials: dict[int, _Trial] = {}
        self._switches = 0
        self._said = self._closed = False
        self._session = session
        self._turn = session.take_control("LatencyGovernor")
        self._observer = self._observe
        self._beat = self._unbeaten = 0
        self._beaten = clock()
        self._stand_on(len(self._rungs) - 1)
        session.attach(self._observer)

    @property
    def state(self) -> dict[str, Any]:
        """The current state, for a log or a status page.

        It holds the name of the active ``configuration``, its ``accuracy`` and ``cost`` (relative to the full model) on
        the search split, ``limit_ms``, the ``p95_ms`` of the last ``calls`` with it (None before the first), the number
        of ``switches``, and ``missed``: whether even the cheapest configuration allowed exceeds the limit.
        """
        with self._lock:
            rung = self._rungs[self._place]
            return {
                "configuration": rung.configuration.name,
                "accuracy": rung.accuracy,
                "cost": rung.cost,
                "limit_ms": self._limit * 1e3,
                "p95_ms": self._p95(self._window) * 1e3 if self._seconds else None,
                "calls": len(self._seconds),
                "switches": self._switches,
                "missed": self._place == 0 and self._too_slow(),
            }

    def close(self) -> None:
        """Release control of the session; the active configuration stays. Calling it twice is allowed."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._session.detach(self._observer)
        self._session.release_control()

    def __enter__(self) -> LatencyGovernor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _observe(self, result: Result, seconds: float) -> None:
        with self._lock:
            if self._closed or result.configuration is not self._rungs[self._place].configuration:
                return  # the call began before the last step
            if len(self._seconds) == self._window:
                self._slow -= self._seconds[0] > self._limit
            self._seconds.append(seconds)
            self._slow += seconds > self._limit
            beat = self._count_beat()
            if self._too_slow():
                self._step_down()
            elif beat:
                self._try_above()

    def _count_beat(self) -> bool:
        """Count a call; return whether enough calls and seconds have passed since the last beat or step."""
        self._unbeaten += 1
        if self._unbeaten < self._recent or self._clock() - self._beaten < self._dwell:
            return False
        self._beat += 1
        self._unbeaten, self._beaten = 0, self._clock()
        return True

    def _p95(self, calls: int) -> float:
        """Return the 95 % quantile, in seconds, of the last ``calls`` durations."""
        seen = sorted(islice(reversed(self._seconds), calls))
        return seen[math.ceil(_QUANTILE * len(seen)) - 1]

    def _too_slow(self) -> bool:
        """Return whether slow calls in the window exceed 5 % by more than a (Poisson) standard deviation."""
        usual = (1 - _QUANTILE) * len(self._seconds)
        return self._slow > max(_CHANCE, usual + math.sqrt(usual))

    def _step_down(self) -> None:
        if self._place == 0:
            self._say_missed()
            return
        if (trial := self._trials.get(self._place)) is not None:
            good = self._beat - trial.start >= _GOOD_FOR * trial.wait
            trial.wait = _FIRST_WAIT if good else max(_FIRST_WAIT, 2 * trial.wait)
            trial.until = self._beat + trial.wait
        affordable = self._rungs[self._place].expected * _AIM * self._limit / self._p95(self._recent)
        fitting = [place for place in range(self._place) if self._rungs[place].expected <= affordable]
        self._stand_on(max(fitting, default=0))
        self._switches += 1

    def _try_above(self) -> None:
        above, p95 = self._place + 1, self._p95(self._recent)
        if above == len(self._rungs):
            return
        if p95 * self._rungs[above].expected / self._rungs[self._place].expected > _ROOM * self._limit:
            return
        trial = self._trials.setdefault(above, _Trial(self._beat, p95))
        if self._beat < trial.until and p95 > _RELIEF * trial.below:
            return
        trial.start, trial.below = self._beat, p95
        self._stand_on(above)
        self._switches += 1

    def _stand_on(self, place: int) -> None:
        self._place, self._slow = place, 0
        self._seconds.clear()
        self._unbeaten, self._beaten = 0, self._clock()
        self._turn(self._rungs[place].configuration)

    def _say_missed(self) -> None:
        if not self._said:
            _log.warning(
                "95 %% of the calls take up to %.3g ms with the cheapest configuration allowed; the limit is %.3g ms",
                self._p95(self._window) * 1e3,
                self._limit * 1e3,
            )
        self._said = True


def _floor(configurations: Configurations, wanted: float | str | None) -> float | None:
    """Return the accuracy that ``min_accuracy`` stands for; None for no limit."""
    if wanted is None or not isinstance(wanted, str):
        return wanted
    searched = {name: entry.search.accuracy for name, entry in configurations.named.items() if entry.search is not None}
    if wanted not in searched and wanted != FLOOR:
        raise ConfigurationError(
            f"min_accuracy is {wanted!r}; the configurations that were searched are {', '.join(searched) or 'none'}"
        )
    return searched.get(wanted, min(searched.values(), default=None))


def _ladder(session: Session, min_accuracy: float | None, batch: int) -> list[_Rung]:
    """Return the rungs, cheapest first: each is more accurate than the one before and costs at least 1.1 times that."""
    configurations = session.bundle.configurations
    known = [
        *_candidates(session.manifest, configurations.named.items(), batch),
        *_candidates(session.manifest, ((None, entry) for entry in configurations.front), batch),
    ]
    if not known:
        raise ConfigurationError(
            "this bundle has no searched configurations, so there is nothing to choose from", hint="Export with --data."
        )
    best = max(rung.accuracy for rung in known)
    if min_accuracy is not None and not (is_real(min_accuracy) and best >= min_accuracy):
        raise ConfigurationError(
            f"min_accuracy is {min_accuracy}; the most accurate configuration of this bundle has {best:.4f}",
            hint="Accuracies are fractions, on the search split.",
        )
    kept: list[_Rung] = []
    for rung in sorted(known, key=lambda rung: (-rung.accuracy, rung.expected)):
        if (min_accuracy is None or rung.accuracy >= min_accuracy) and (
            not kept or rung.expected * _APART <= kept[-1].expected
        ):
            kept.append(rung)
    for rung in kept:
        session.plan(rung.configuration)
    return kept[::-1]


def _candidates(manifest: Manifest, entries: Iterable[tuple[str | None, Entry]], batch: int) -> list[_Rung]:
    """Return a rung for every entry that was searched; those without a name are named after their cost."""
    return [
        _Rung(
            entry.configuration(name or f"front {entry.search.cost:.3f}"),
            entry.search.accuracy,
            entry.search.cost,
            _expected(manifest, entry.configuration(""), entry.search, batch),
        )
        for name, entry in entries
        if entry.search is not None
    ]


def _expected(manifest: Manifest, configuration: Configuration, figures: Figures, batch: int) -> float:
    """Return the 95 % quantile of the cost of a call, relative to the full model, for inputs as on the search split.

    For calls of one sample it is the cost of the exit that 95 % of the samples take at the latest, which may differ
    much from the mean. For larger batches the excess over the mean shrinks with the square root of the batch size.
    """
    paid, shares = path_macs(manifest, configuration), np.array(figures.share_per_exit)
    if len(shares) != len(paid):
        return figures.cost
    hard = paid[np.searchsorted(np.cumsum(shares), _QUANTILE)] / (shares @ paid)
    return float(figures.cost * (1 + (hard - 1) / math.sqrt(batch)))
