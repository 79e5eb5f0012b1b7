"""What a session has resolved: turning the knob again looks it up."""

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

# Of each kind; an application that makes more of them pays for each use.
_MOST_KEPT = 1000

# What a configuration does, whatever its name.
_Settings: TypeAlias = tuple[tuple[object, ...], ...]
_Key = TypeVar("_Key", bound=Hashable)


class PlanCache:
    """Plans of a bundle.

    The stages of equal settings are the same objects, whatever the name of the configuration: execution contexts keep
    what they prepare for steps by their identity.

    Attributes:
        named: by the name of a configuration of the bundle.
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
        """What a configuration runs. Raises ConfigurationError if it does not fit the bundle."""
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
        """The most accurate searched configuration that costs no more. Raises ConfigurationError if there is none."""
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
    """The plan, which is remembered."""
    if len(known) >= _MOST_KEPT:
        known.clear()
    known[key] = plan
    return plan
