"""Cache the plans of a session, so that switching back to a configuration is a look-up."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeAlias, TypeVar

import msgspec
import numpy as np

from dyce_runtime.arguments import shown
from dyce_runtime.bundle.configuration import Configuration
from dyce_runtime.bundle.reader import Bundle
from dyce_runtime.errors import ConfigurationError
from dyce_runtime.execution.plan import Plan, make_plan

# The most entries of each cache. A cache that is full is emptied.
_MOST_KEPT = 1000

# The settings of a configuration without its name, as a key.
_Settings: TypeAlias = tuple[tuple[object, ...], ...]
_Key = TypeVar("_Key", bound=Hashable)


class PlanCache:
    """The plans of a session.

    Configurations with equal settings share their stages, whatever their names: execution contexts cache what they
    prepare for steps by the identity of the steps.

    Args:
        bundle: the bundle.
        pieces: ids of the open pieces.
        min_exited_to_compact: as in :func:`dyce_runtime.execution.plan.make_plan`.
        allow_untrained: whether configurations with untrained heads may run.

    Attributes:
        named: plans by the name of a configuration of the bundle.
    """

    def __init__(
        self, bundle: Bundle, pieces: Sequence[str], min_exited_to_compact: Mapping[str, int], *, allow_untrained: bool
    ) -> None:
        self.named: dict[str, Plan] = {}
        self._bundle, self._pieces, self._allow_untrained = bundle, pieces, allow_untrained
        self._min_exited_to_compact = min_exited_to_compact
        self._own: dict[str, Plan] = {}
        self._budgets: dict[float, Plan] = {}
        self._resolved: dict[_Settings, Plan] = {}

    def of(self, configuration: str | Configuration) -> Plan:
        """Return the plan of a configuration.

        Raises:
            ConfigurationError: the configuration does not exist or fit the bundle, or its heads are untrained and not
                allowed.
        """
        if isinstance(configuration, str):
            plan = self.named.get(configuration)
            return plan or _kept(self.named, configuration, self._resolve(self._bundle.configuration(configuration)))
        if not isinstance(configuration, Configuration):
            raise ConfigurationError(
                f"found {shown(configuration)}; expected the name of a configuration, or a Configuration"
            )
        plan = self._own.get(configuration.name) if isinstance(configuration.name, str) else None
        if plan is None or plan.configuration is not configuration:
            plan = _kept(self._own, configuration.name, self._resolve(configuration))
        return plan

    def within(self, share: float) -> Plan:
        """Return the plan of the most accurate searched configuration that costs at most ``share`` of the full model.

        Raises:
            ConfigurationError: there is none.
        """
        plan = self._budgets.get(share)
        if plan is None:
            found = self._resolve(self._bundle.configurations.within(share))
            plan = _kept(self._budgets, share, msgspec.structs.replace(found, budget=share))
        return plan

    def _resolve(self, configuration: Configuration) -> Plan:
        manifest = self._bundle.manifest
        configuration.check(manifest)
        exits = ((id, on.head, float(np.float32(on.threshold))) for id, on in configuration.exits.items())
        settings: _Settings = (*exits, *configuration.gates.items())
        known = self._resolved.get(settings)
        if known is not None:
            return msgspec.structs.replace(known, configuration=configuration)
        plan = make_plan(manifest, configuration, self._pieces, self._min_exited_to_compact)
        if configuration.exits and manifest.heads == "untrained" and not self._allow_untrained:
            raise ConfigurationError(
                f"configuration {configuration.name!r} uses heads that were never trained: its answers mean nothing",
                hint="Export with --data to train them, or load with allow_untrained=True to measure speed.",
            )
        return _kept(self._resolved, settings, plan)


def _kept(known: dict[_Key, Plan], key: _Key, plan: Plan) -> Plan:
    """Store a plan in a cache and return it."""
    if len(known) >= _MOST_KEPT:
        known.clear()
    known[key] = plan
    return plan
