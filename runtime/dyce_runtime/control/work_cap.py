"""A work cap: bounds the cost of samples that never exit early, by chance or by an attacker's design."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

from dyce_runtime.arguments import is_real
from dyce_runtime.bundle.configuration import Configuration, ExitSetting
from dyce_runtime.bundle.manifest import Manifest
from dyce_runtime.bundle.reader import Bundle
from dyce_runtime.errors import ConfigurationError, UsageError
from dyce_runtime.execution.plan import Plan, make_plan, path_macs
from dyce_runtime.execution.routing import Result
from dyce_runtime.execution.session import Session
from dyce_runtime.process_bound import ProcessBound

# The most configurations whose capped plans are cached.
_MOST_KEPT = 100


class _Paths(msgspec.Struct, frozen=True):
    """The cost of a configuration at every exit, and its plans cut off at exits, by exit index and made on demand."""

    configuration: Configuration
    shares: NDArray[np.float64]
    plans: dict[int, Plan]


class WorkCap(ProcessBound):
    """Bounds the work of every sample of a session and, optionally, of all its samples per second.

    Work is measured in multiply-accumulates, relative to the full model. A sample that reaches the last exit within the
    cap exits there, whatever its confidence; its result still names the active configuration. If samples come faster
    than ``max_per_second`` allows, they exit still earlier; after a pause, up to a second's worth of work may run at
    once. If no work is left, they exit at the cheapest exit. An answer cannot cost less than that; only an application
    that rejects inputs can spend less. Work is charged after a call, so concurrent calls may exceed the limit.

    :meth:`close`, or the end of a ``with`` block, removes the cap. Any number of threads may call the session, and a
    governor may control its configuration.
    """

    def __init__(
        self,
        session: Session,
        max_share: float = 0.6,
        max_per_second: float | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Cap a session from its next call on.

        A call raises ConfigurationError if no exit of its configuration is within ``max_share``.

        Args:
            session: an open session that has no cap.
            max_share: the most work of one sample, relative to the full model, over 0.
            max_per_second: the most work of all samples, in inferences of the full model per second; None sets no
                limit.
            clock: returns monotonic seconds.

        Raises:
            UsageError: a number is out of range.
            ConfigurationError: the active configuration, or one of the bundle, has no exit within ``max_share``; the
                heads are untrained; or the session has a cap already.
        """
        if not (is_real(max_share) and max_share > 0):
            raise UsageError(f"max_share is {max_share}; expected a number over 0")
        if max_per_second is not None and not (is_real(max_per_second) and 0 < max_per_second < math.inf):
            raise UsageError(f"max_per_second is {max_per_second}; expected a finite number over 0")
        if session.cap is not None:
            raise ConfigurationError("the work of this session is capped already", hint="Close that cap first.")
        self._session = session
        self._max_share = max_share
        self._heads = usual_heads(session.bundle)
        self._known: dict[int, _Paths] = {}
        self._check()
        self._bucket = None if max_per_second is None else _Bucket(max_per_second, min(max_share, 1.0), clock)
        self._cap, self._observer = self._limited, self._charge
        session.cap = self._cap
        if self._bucket is not None:
            session.attach(self._observer)

    def close(self) -> None:
        """Remove the cap. Calling it twice is allowed."""
        self._session.detach(self._observer)
        if self._session.cap is self._cap:
            self._session.cap = None

    def __enter__(self) -> WorkCap:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check(self) -> None:
        """Raise ConfigurationError now, not in a later call, if a configuration of the bundle cannot be capped."""
        bundle = self._session.bundle
        known = [(f"front {n}", entry) for n, entry in enumerate(bundle.configurations.front)]
        known += bundle.configurations.named.items()
        for configuration in [self._session.configuration, *(entry.configuration(name) for name, entry in known)]:
            shares = exit_shares(bundle.manifest, configuration, self._heads)
            _deepest(bundle.manifest, configuration, shares, self._max_share)
        first = bundle.manifest.exits[0]
        if len(bundle.manifest.exits) > 1:  # raises if the heads are untrained and not allowed
            self._session.plan(Configuration("capped", {first.id: ExitSetting(first.heads[0].type, 1.0)}))

    def _limited(self, plan: Plan, count: int) -> Plan:
        """Return the plan that a call of ``count`` samples runs instead of ``plan``."""
        paths = self._paths(plan.configuration)
        last = _deepest(self._session.manifest, plan.configuration, paths.shares, self._max_share)
        if self._bucket is not None:
            affordable = np.flatnonzero(paths.shares[: last + 1] <= self._bucket.level() / count)
            last = int(affordable[-1] if len(affordable) else paths.shares.argmin())
        if last not in paths.plans:
            paths.plans[last] = _leaving(self._session.manifest, plan, last, self._session.pieces, self._heads)
        return paths.plans[last]

    def _charge(self, result: Result, seconds: float) -> None:
        assert self._bucket is not None
        self._bucket.take(float(self._paths(result.configuration).shares[result.exit].sum()))

    def _paths(self, configuration: Configuration) -> _Paths:
        found = self._known.get(id(configuration))
        if found is None:
            shares = exit_shares(self._session.manifest, configuration, self._heads)
            if len(self._known) >= _MOST_KEPT:
                self._known.clear()
            found = self._known[id(configuration)] = _Paths(configuration, shares, {})
        return found


def capped(
    manifest: Manifest,
    plan: Plan,
    max_share: float,
    pieces: Collection[str] | None = None,
    heads: Mapping[str, str] | None = None,
) -> Plan:
    """Cut a plan off after the last exit that costs at most ``max_share``: all samples that reach it exit there.

    Args:
        manifest: of the bundle.
        plan: the plan to cut off.
        max_share: fraction of the full model's multiply-accumulates, including the heads that run before.
        pieces: ids of the pieces that may run, as in :func:`make_plan`.
        heads: exit id to the type of head to use if the exit is off; without an entry, the cheapest trained one.

    Raises:
        ConfigurationError: no exit is that cheap.
    """
    shares = exit_shares(manifest, plan.configuration, heads or {})
    return _leaving(manifest, plan, _deepest(manifest, plan.configuration, shares, max_share), pieces, heads or {})


def exit_shares(manifest: Manifest, configuration: Configuration, heads: Mapping[str, str]) -> NDArray[np.float64]:
    """Return (exits,) the multiply-accumulates of a sample that exits at each exit, relative to the full model.

    They include the heads that run before and the head of the exit itself. If the exit is off, that head is the one in
    ``heads`` (exit id to type), or else the cheapest trained one.
    """
    return path_macs(manifest, configuration, heads) / manifest.model.macs


def usual_heads(bundle: Bundle) -> dict[str, str]:
    """Return, for every exit that the bundle's configurations use, the type of head that most of them use there."""
    configurations = bundle.configurations
    entries = (*configurations.front, *configurations.named.values())
    used = Counter((id, setting.head) for entry in entries for id, setting in entry.exits.items())
    return {id: head for (id, head), _ in reversed(used.most_common())}


def _deepest(manifest: Manifest, configuration: Configuration, shares: NDArray[np.float64], max_share: float) -> int:
    fitting = np.flatnonzero(shares <= max_share)
    if not len(fitting):
        cheapest = int(shares.argmin())
        raise ConfigurationError(
            f"no input can leave within {max_share:g} of the full model's work with configuration "
            f"{configuration.name!r}; leaving at exit {manifest.exits[cheapest].id} costs {shares[cheapest]:.3f}",
            hint="Raise max_share, or export with an earlier exit.",
        )
    return int(fitting[-1])


def _leaving(
    manifest: Manifest, plan: Plan, last: int, pieces: Collection[str] | None, heads: Mapping[str, str]
) -> Plan:
    """Return the plan cut off at the exit with index ``last``: all samples that reach it exit there."""
    if last == len(manifest.exits) - 1:
        return plan
    least = {manifest.exits[leave.exit].id: leave.min_exited_to_compact for leave in plan.leaves}
    ending = make_plan(manifest, plan.configuration, pieces, least, manifest.exits[last].id, heads)
    return msgspec.structs.replace(plan, stages=ending.stages)


class _Bucket:
    """A token bucket of work: it fills at a constant rate, up to a second's worth, or one sample's if that is more.

    Its level becomes negative if samples cost more than is left, but by no more than its size. So the after-effects of
    a flood, which only rejecting inputs could have bounded, are short.
    """

    def __init__(self, per_second: float, least: float, clock: Callable[[], float]) -> None:
        self._per_second = per_second
        self._size = self._level = max(per_second, least)
        self._clock = clock
        self._filled = clock()
        self._lock = threading.Lock()

    def level(self) -> float:
        with self._lock:
            return self._fill()

    def take(self, work: float) -> None:
        with self._lock:
            self._level = max(self._fill() - work, -self._size)

    def _fill(self) -> float:
        now = self._clock()
        self._level = min(self._level + (now - self._filled) * self._per_second, self._size)
        self._filled = now
        return self._level
