"""What a session does, in numbers for a monitor, and whether its inputs still look like those of the calibration."""

from __future__ import annotations

import logging
import math
import threading
from bisect import bisect_left
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import msgspec

from dyce_runtime.arguments import is_real
from dyce_runtime.bundle.configuration import Configuration, settings_of
from dyce_runtime.bundle.manifest import FINAL
from dyce_runtime.bundle.reader import RECORDS, Bundle
from dyce_runtime.errors import UsageError
from dyce_runtime.execution.routing import Result
from dyce_runtime.execution.session import Session
from dyce_runtime.monitoring.drift import Comparison, DriftReport, Watched, compare_confidences, read_expected, replay
from dyce_runtime.monitoring.prometheus import Line, drift_families, family
from dyce_runtime.process_bound import ProcessBound

#: Upper boundaries of the latency histogram in seconds: three a decade.
BUCKETS = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

# Configurations, and names of configurations, that are told apart.
_MOST_KEPT = 64
_OTHER = "other"

_log = logging.getLogger("dyce_runtime")


class Observation(ProcessBound):
    """Counts what a session does, and tells when its confidences are no longer those of the calibration.

    ``session.attach(Observation(session))`` starts it. Counters and a latency histogram count from then on. Drift is
    measured under each configuration by itself: its exits are replayed on the records of the samples that no
    threshold was chosen on (the splits ``certification`` and ``test``), which says how many samples should leave at
    each exit, and how sure. What does leave is compared by the population stability index (PSI), in bins that hold
    equally many of the expected confidences, and so are the shares of the exits.

    A PSI is drift above ``threshold``: 0.1 and 0.2 are usual bounds of a small and a significant change (Wu and
    Olson, "Enterprise risk management: coping with model risk in a large bank", Journal of the Operational Research
    Society 61, 2010; Siddiqi, "Credit Risk Scorecards", 2006, puts the second at 0.25). They know nothing of the
    number of samples: without any drift the PSI of n samples in B bins against m records is about chi-square
    distributed with B - 1 degrees of freedom, times 1/n + 1/m (Yurdakul, "Statistical Properties of Population
    Stability Index", 2018): above 0.2 nearly every second time for n = 200, m = 50. So it also has to be above what
    chance exceeds once in a million times.

    A sample that a work cap sends out, not as sure as its configuration asks for or where no exit is on, counts in the
    counters alone; the shares of the exits cannot be told then, nor for the next 1000 samples.

    All threads that call the session may share an observation. The last 64 configurations are kept; those that do
    the same count as one, whatever their names. Samples are counted for the first 64 names, then for ``other``.

    Args:
        source: the session to observe, or its bundle.
        on_drift: called with the report when drift begins under a configuration, in the thread that called the
            session, and again only after it has ended. What it raises is logged.
        buckets: upper boundaries of the latency histogram, in seconds, ascending.
        threshold: the PSI above which there is drift.
        minimum: observed samples below which a PSI is None.
        bins: of the confidences at an exit, at most; fewer where few records leave or confidences are equal.

    Raises:
        BundleError: the bundle's records are damaged.
        UsageError: an option makes no sense.
    """

    def __init__(
        self,
        source: Session | Bundle,
        *,
        on_drift: Callable[[DriftReport], object] | None = None,
        buckets: Sequence[float] = BUCKETS,
        threshold: float = 0.2,
        minimum: int = 200,
        bins: int = 10,
    ) -> None:
        _check_options(buckets, threshold, minimum, bins)
        if on_drift is not None and not callable(on_drift):
            raise UsageError(f"on_drift is {on_drift!r}; expected a function")
        bundle = source if isinstance(source, Bundle) else source.bundle
        self._manifest = bundle.manifest
        self._records, self._reason = read_expected(bundle.file(RECORDS))
        self._on_drift = on_drift
        self._buckets = [float(boundary) for boundary in buckets]
        self._threshold, self._minimum, self._bins = threshold, minimum, bins
        self._lock = threading.Lock()
        self._calls = [0] * (len(buckets) + 1)
        self._seconds = 0.0
        self._samples: dict[str, list[int]] = {}
        # By what they do, the last used one at the end.
        self._watched: dict[Hashable, Watched] = {}
        self._current: tuple[Configuration, list[int], Watched] | None = None

    def __call__(self, result: Result, seconds: float) -> None:
        """Count a call.

        Args:
            result: what it returned, of the bundle that is observed.
            seconds: that it took.
        """
        current = self._current
        if current is None or current[0] is not result.configuration:
            current = self._turn_to(result.configuration)
        _, samples, watched = current
        exits, confidences = result.exit.tolist(), result.confidence.tolist()
        bucket = bisect_left(self._buckets, seconds)
        with self._lock:
            self._calls[bucket] += 1
            self._seconds += seconds
            for exit in exits:
                samples[exit] += 1
            begun = watched.add(exits, confidences)
        if begun is not None and self._on_drift is not None:
            try:
                self._on_drift(begun)
            except Exception:  # the answer of the call is worth more
                _log.exception("on_drift failed")

    @property
    def drifted(self) -> bool | None:
        """Whether there is drift under the configuration of the last call; None if that cannot be told (yet)."""
        current = self._current
        return None if current is None else current[2].report.drifted

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON: counts, ``latency_seconds`` with cumulative buckets, and ``drift``.

        ``drift`` has ``drifted`` of the configuration of the last call, ``reason`` (why nothing can be told, or
        None), and a :class:`DriftReport` for each of ``configurations``, the last used one first.
        """
        now = self._snapshot()
        per_exit = {
            exit.id: sum(counts[index] for counts in now.samples.values())
            for index, exit in enumerate(self._manifest.exits)
        }
        return {
            "calls": now.latency["+Inf"],
            "samples": sum(per_exit.values()),
            "samples_per_exit": per_exit,
            "samples_per_configuration": {name: sum(counts) for name, counts in now.samples.items()},
            "latency_seconds": {"buckets": now.latency, "sum": now.seconds, "count": now.latency["+Inf"]},
            "drift": {
                "drifted": now.reports[0].drifted if now.reports else None,
                "reason": self._reason or None,
                "configurations": [msgspec.to_builtins(report) for report in now.reports],
            },
        }

    def prometheus(self) -> str:
        """The same in Prometheus' text format, version 0.0.4 (``text/plain; version=0.0.4``), names in ``dyce_...``.

        A PSI that is not known has no line. Of equally named configurations the last used one is shown.
        """
        now = self._snapshot()
        samples = [
            ("", {"configuration": name, "exit": exit.id}, count)
            for name, counts in now.samples.items()
            for exit, count in zip(self._manifest.exits, counts, strict=True)
        ]
        calls = now.latency["+Inf"]
        latency: list[Line] = [("_bucket", {"le": boundary}, count) for boundary, count in now.latency.items()]
        families = [
            family("calls_total", "counter", "Calls of the session.", [("", {}, calls)]),
            family("samples_total", "counter", "Samples by the exit that they left at.", samples),
            family(
                "call_duration_seconds",
                "histogram",
                "Time that calls took.",
                [*latency, ("_sum", {}, now.seconds), ("_count", {}, calls)],
            ),
            *drift_families({report.configuration.name: report for report in reversed(now.reports)}),
        ]
        return "".join(line + "\n" for family in families for line in family)

    def _turn_to(self, configuration: Configuration) -> tuple[Configuration, list[int], Watched]:
        """From now on samples count for this configuration."""
        settings = settings_of(configuration)
        watched = self._watched.get(settings) or self._watch(configuration)
        with self._lock:
            watched = self._watched.pop(settings, watched)
            self._watched[settings] = watched
            if len(self._watched) > _MOST_KEPT:
                del self._watched[next(iter(self._watched))]
            known = configuration.name in self._samples or len(self._samples) < _MOST_KEPT
            name = configuration.name if known else _OTHER
            samples = self._samples.setdefault(name, [0] * len(self._manifest.exits))
            self._current = current = configuration, samples, watched
        return current

    def _watch(self, configuration: Configuration) -> Watched:
        """What to expect of a configuration. The records are replayed here, which takes milliseconds: in no lock."""
        expected, reason = None, self._reason
        if self._records is not None:
            try:
                expected = replay(self._records, configuration, self._manifest)
            except KeyError as error:
                reason = "the records have no head {1} at exit {0}".format(*error.args[0])
        ids = [exit.id for exit in self._manifest.exits if exit.id in configuration.exits or exit.id == FINAL]
        exits = {id: compare_confidences(None if expected is None else expected[id], self._bins, reason) for id in ids}
        if expected is not None and len(expected) == 1:
            reason = "no exit is on"
        counts = [0] * len(exits) if expected is None else [len(confidences) for confidences in expected.values()]
        shares = Comparison(counts, reason=reason)
        return Watched(self._manifest, configuration, shares, exits, self._threshold, self._minimum)

    def _snapshot(self) -> _Snapshot:
        """Everything at one moment."""
        with self._lock:
            calls, seconds = list(self._calls), self._seconds
            samples = {name: list(counts) for name, counts in self._samples.items()}
            reports = [watched.report for watched in reversed(self._watched.values())]
        boundaries = [*map(repr, self._buckets), "+Inf"]
        latency = {boundary: sum(calls[: index + 1]) for index, boundary in enumerate(boundaries)}
        return _Snapshot(latency, seconds, samples, reports)


class _Snapshot(msgspec.Struct, frozen=True):
    """Latency is cumulative: upper boundary to the calls that took no longer."""

    latency: dict[str, int]
    seconds: float
    samples: dict[str, list[int]]
    reports: list[DriftReport]


def _check_options(buckets: Sequence[float], threshold: float, minimum: int, bins: int) -> None:
    finite = isinstance(buckets, Sequence) and all(is_real(edge) and math.isfinite(edge) for edge in buckets)
    if not finite or not buckets or list(buckets) != sorted(set(buckets)):
        raise UsageError(f"the buckets are {buckets}; expected ascending numbers of seconds")
    if not (is_real(threshold) and threshold > 0):
        raise UsageError(f"the threshold of drift is {threshold}; expected a number over 0")
    if not (is_real(minimum) and is_real(bins)) or minimum < 1 or bins < 2:
        raise UsageError(f"minimum is {minimum} and bins is {bins}; expected at least 1 sample and 2 bins")
