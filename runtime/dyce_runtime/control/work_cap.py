"""The work cap: bounds what inputs cost that never exit early, whether by chance or by an attacker's design."""

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

# Configurations whose capped plans are kept; an application that turns through more of them pays again.
_MOST_KEPT = 100


class _Paths(msgspec.Struct, frozen=True):
    """What a configuration costs at every exit, and the plans that end there, as far as they were needed."""

    configuration: Configuration
    shares: NDArray[np.float64]
    plans: dict[int, Plan]


class WorkCap(ProcessBound):
    """Bounds the work of every input of a session and, if asked to, of all its inputs per second.

    Work is in multiply-accumulates, relative to the full model. An input that reaches the last exit within the cap
    leaves there, however unsure; its result still names the active configuration. Where inputs come faster than
    ``max_per_second`` allows they leave still earlier; a second's worth may run at once after a pause. When nothing is
    left they leave at the cheapest exit. That is the least that an answer costs: only an application that refuses
    inputs can spend less. Work is charged when it is done: what runs at the same time may come on top.

    :meth:`close`, or the end of a ``with`` block, takes the cap away. Any number of threads may call the session, and a
    governor may turn its knob.
    """

    def __init__(
        self,
        session: Session,
        max_share: float = 0.6,
        max_per_second: float | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Cap a session from its next call on. A call raises ConfigurationError if its configuration has no such exit.

        Args:
            session: an open session that has no cap.
            max_share: work of one input, relative to the full model.
            max_per_second: work of all inputs, in inferences of the full model per second; None sets no limit.
            clock: monotonic seconds.

        Raises:
            UsageError: a number makes no sense.
            ConfigurationError: the active configuration, or one of the bundle, has no exit within ``max_share``; the
                heads are untrained; or the session has a cap.
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
        """Take the cap away. Calling it twice is allowed."""
        self._session.detach(self._observer)
        if self._session.cap is self._cap:
            self._session.cap = None

    def __enter__(self) -> WorkCap:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check(self) -> None:
        """Raise what could go wrong with the bundle's configurations now, rather than in the middle of a stream."""
        bundle = self._session.bundle
        known = [(f"front {n}", entry) for n, entry in enumerate(bundle.configurations.front)]
        known += bundle.configurations.named.items()
        for configuration in [self._session.configuration, *(entry.configuration(name) for name, entry in known)]:
            shares = exit_shares(bundle.manifest, configuration, self._heads)
            _deepest(bundle.manifest, configuration, shares, self._max_share)
        first = bundle.manifest.exits[0]
        if len(bundle.manifest.exits) > 1:  # whether its heads may run at all
            self._session.plan(Configuration("capped", {first.id: ExitSetting(first.heads[0].type, 1.0)}))

    def _limited(self, plan: Plan, count: int) -> Plan:
        """What a call of so many inputs runs."""
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
    """The plan, cut off behind the last exit that costs at most ``max_share``: whoever gets there leaves.

    Args:
        max_share: of the full model's multiply-accumulates, heads on the way included.
        pieces: as in :func:`make_plan`.
        heads: the type of head at exits that are off, by the exit's id; otherwise the cheapest trained one.

    Raises:
        ConfigurationError: there is no such exit.
    """
    shares = exit_shares(manifest, plan.configuration, heads or {})
    return _leaving(manifest, plan, _deepest(manifest, plan.configuration, shares, max_share), pieces, heads or {})


def exit_shares(manifest: Manifest, configuration: Configuration, heads: Mapping[str, str]) -> NDArray[np.float64]:
    """(exits,) multiply-accumulates that a sample pays if it leaves at each exit, relative to the full model.

    Heads on the way are included and its own is, which at exits that are off is the one in ``heads`` or the cheapest.
    """
    return path_macs(manifest, configuration, heads) / manifest.model.macs


def usual_heads(bundle: Bundle) -> dict[str, str]:
    """For every exit that the bundle's configurations use, the type of head that most of them have there."""
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
    """The plan whose every sample leaves at the exit of that index, if it gets there."""
    if last == len(manifest.exits) - 1:
        return plan
    least = {manifest.exits[leave.exit].id: leave.min_exited_to_compact for leave in plan.leaves}
    ending = make_plan(manifest, plan.configuration, pieces, least, manifest.exits[last].id, heads)
    return msgspec.structs.replace(plan, stages=ending.stages)


class _Bucket:
    """Work that may still be done: it fills at a rate, up to a second's worth, and at least one input's.

    It is overdrawn where inputs cost more than is left; of that no more than a bucketful is remembered, so that a flood
    which nothing but refusing could have bounded is over for others a moment after it ends.
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
