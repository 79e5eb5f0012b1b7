"""Observe a session: count its calls and samples for a monitoring system, and detect drift of its inputs."""

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

# The most configurations, and the most names of configurations, that are counted separately.
_MOST_KEPT = 64
_OTHER = "other"

_log = logging.getLogger("dyce_runtime")


class Observation(ProcessBound):
    """Counts the calls and samples of a session, and detects when its confidences drift from the calibration.

    ``session.attach(Observation(session))`` starts it; counters and a latency histogram start at 0. Drift is measured
    for each configuration separately: its exits are replayed on the calibration records of the samples that no
    threshold was chosen on (the splits ``certification`` and ``test``), which gives the expected share of samples at
    each exit and their expected confidences. The observed confidences are compared with them by the population
    stability index (PSI), in bins that hold equally many of the expected confidences, and so are the shares of the
    exits.

    A PSI above ``threshold`` counts as drift: 0.1 and 0.2 are usual bounds of a small and a significant change (Wu and
    Olson, "Enterprise risk management: coping with model risk in a large bank", Journal of the Operational Research
    Society 61, 2010; Siddiqi, "Credit Risk Scorecards", 2006, puts the second at 0.25). These bounds do not depend on
    the number of samples. Without any drift, the PSI of n samples in B bins against m records is about chi-square
    distributed with B - 1 degrees of freedom, times 1/n + 1/m (Yurdakul, "Statistical Properties of Population
    Stability Index", 2018): for n = 200 and m = 50 it is above 0.2 nearly half of the time. A PSI therefore also has to
    be above the value that chance exceeds once in a million times.

    A sample that a work cap forces to exit, with a confidence below the threshold of its configuration or at an exit
    that is off, only counts in the counters. The shares of the exits are then unknown until 1,000 samples have come
    without a forced exit.

    All threads that call the session may share an observation. The 64 configurations used last are kept; those with
    the same settings count as one, whatever their names. Samples are counted under the first 64 names, then under
    ``other``.

    Args:
        source: the session to observe, or its bundle.
        on_drift: called with the report when drift begins under a configuration, in the thread that called the
            session, and again only after that drift has ended. An exception from it is logged.
        buckets: upper boundaries of the latency histogram, in seconds, ascending.
        threshold: the PSI above which there is drift.
        minimum: with fewer observed samples, a PSI is None.
        bins: the most bins for the confidences at an exit; there are fewer if few records exit there or their
            confidences are equal.

    Raises:
        BundleError: the bundle's records are damaged.
        UsageError: an option is invalid.
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
            result: the result that it returned, from the bundle that is observed.
            seconds: the time that it took.
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
            except Exception:  # a failing callback must not make the call of the session fail
                _log.exception("on_drift failed")

    @property
    def drifted(self) -> bool | None:
        """Whether there is drift under the configuration of the last call; None if that is not known (yet)."""
        current = self._current
        return None if current is None else current[2].report.drifted

    def as_dict(self) -> dict[str, Any]:
        """Return all figures, ready for JSON: counts, ``latency_seconds`` with cumulative buckets, and ``drift``.

        ``drift`` holds ``drifted`` for the configuration of the last call, ``reason`` (why drift cannot be measured, or
        None), and the :class:`DriftReport` of each of ``configurations``, the last used one first.
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
        """Return the same in Prometheus' text format, version 0.0.4 (``text/plain; version=0.0.4``).

        All names start with ``dyce_``. A PSI that is not known has no line. If several configurations have the same
        name, the last used one is shown.
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
            family("samples_total", "counter", "Samples by the exit that they took.", samples),
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
        """Compute what to expect of a configuration. Called without the lock: replaying takes milliseconds."""
        expected, reason = None, self._reason
        if configuration.gates:
            reason = "the records were made with other settings of the gates"
        elif self._records is not None:
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
        """Copy all counts and reports under the lock, so that they belong together."""
        with self._lock:
            calls, seconds = list(self._calls), self._seconds
            samples = {name: list(counts) for name, counts in self._samples.items()}
            reports = [watched.report for watched in reversed(self._watched.values())]
        boundaries = [*map(repr, self._buckets), "+Inf"]
        latency = {boundary: sum(calls[: index + 1]) for index, boundary in enumerate(boundaries)}
        return _Snapshot(latency, seconds, samples, reports)


class _Snapshot(msgspec.Struct, frozen=True):
    """A consistent copy of all figures. ``latency`` maps each upper boundary to the calls that took no longer."""

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
