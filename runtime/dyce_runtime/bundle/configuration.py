"""Configurations: which exits are on, with which head, at which threshold."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Protocol

import msgspec
import numpy as np

from dyce_runtime.arguments import is_real, number, shown
from dyce_runtime.bundle.manifest import SCHEMA_VERSION, Manifest
from dyce_runtime.errors import ConfigurationError
from dyce_runtime.program.operations import Choose

FULL = "full"
# Names become labels of counters and lines of a log.
_LONGEST_NAME = 200


class ExitSetting(msgspec.Struct, frozen=True):
    """An exit that is on: the type of its head and its threshold (float32, a sample leaves strictly above it)."""

    head: str
    threshold: float


class Configuration(msgspec.Struct, frozen=True):
    """What of a bundle is on, immutable. Exits that are not named are off; ``{}`` runs the full model.

    Attributes:
        gates: id of a gate to its cut points, ascending, or to the case that all samples take; a gate that is not
            named has the cut points of the program.
    """

    name: str
    exits: dict[str, ExitSetting] = msgspec.field(default_factory=dict)
    gates: dict[str, tuple[float, ...] | int] = msgspec.field(default_factory=dict)

    def check(self, manifest: Manifest) -> None:
        """Raise ConfigurationError unless every exit, head and threshold exists in the bundle."""
        if not isinstance(self.name, str) or len(self.name) > _LONGEST_NAME:
            raise ConfigurationError(
                f"the name of a configuration is {shown(self.name)}; expected text of at most {_LONGEST_NAME} "
                "characters"
            )
        if not isinstance(self.exits, dict):
            raise ConfigurationError(
                f"configuration {self.name!r} has the exits {shown(self.exits)}; expected a dictionary"
            )
        for id, setting in self.exits.items():
            if not isinstance(setting, ExitSetting):
                raise ConfigurationError(
                    f"configuration {self.name!r} sets exit {shown(id)} to {shown(setting)}; expected an ExitSetting"
                )
            exit = next((e for e in manifest.exits[:-1] if e.id == id), None)
            if exit is None:
                known = ", ".join(e.id for e in manifest.exits[:-1]) or "none"
                raise ConfigurationError(
                    f"configuration {self.name!r} turns on exit {shown(id)}; this bundle has the exits {known}",
                    hint="Use a configuration of this bundle; `dyce inspect BUNDLE` lists them.",
                )
            if setting.head not in [head.type for head in exit.heads]:
                known = ", ".join(head.type for head in exit.heads)
                raise ConfigurationError(
                    f"configuration {self.name!r} uses head {shown(setting.head)} at exit {id}; the bundle has: {known}"
                )
            number(
                f"configuration {self.name!r}: the threshold of exit {id}",
                setting.threshold,
                0,
                1,
                error=ConfigurationError,
            )
        self._check_gates(manifest)

    def _check_gates(self, manifest: Manifest) -> None:
        known = {operation.gate: operation for operation in manifest.program if isinstance(operation, Choose)}
        if not isinstance(self.gates, dict):
            raise ConfigurationError(
                f"configuration {self.name!r} has the gates {shown(self.gates)}; expected a dictionary"
            )
        for id, setting in self.gates.items():
            if id not in known:
                raise ConfigurationError(
                    f"configuration {self.name!r} sets gate {shown(id)}; this bundle has the gates "
                    f"{', '.join(known) or 'none'}"
                )
            cases = len(known[id].cases)
            if type(setting) is int:
                fits = 0 <= setting < cases
            else:
                fits = isinstance(setting, tuple) and ascending(setting, cases - 1)
            if not fits:
                raise ConfigurationError(
                    f"configuration {self.name!r} sets gate {id} to {shown(setting)}; expected a case from 0 to "
                    f"{cases - 1}, or {cases - 1} cut points in ascending order"
                )


def ascending(points: Sequence[object], count: int) -> bool:
    """Whether these are ``count`` cut points of a gate: finite numbers, as float32 each above the one before."""
    if len(points) != count or not all(is_real(point) for point in points):
        return False
    exact = np.array(points, np.float32)
    return bool(np.isfinite(exact).all() and np.all(np.diff(exact) > 0))


class Figures(msgspec.Struct, frozen=True):
    """What one split said about a configuration.

    Attributes:
        accuracy: share of samples labelled right.
        loss: accuracy of the full model on the same samples minus ``accuracy``.
        cost: relative to the full model, in the unit of the cost table that the search used.
        share_per_exit: share of the samples that left at each exit, ``final`` last.
        loss_error: paired standard error of ``loss``; None where it was not computed.
    """

    accuracy: float
    loss: float
    cost: float
    samples: int
    share_per_exit: tuple[float, ...]
    loss_error: float | None = None

    def __repr__(self) -> str:
        """Accuracy, loss and cost, rounded."""
        error = "" if self.loss_error is None else f" ± {100 * self.loss_error:.2f}"
        return (
            f"<accuracy {self.accuracy:.1%}, loses {100 * self.loss:.2f}{error} points, costs {self.cost:.1%} of full, "
            f"on {self.samples} samples>"
        )


class Certificate(msgspec.Struct, frozen=True):
    """With probability at least 1 - ``delta`` the accuracy lost against the full model is at most ``epsilon``.

    Attributes:
        epsilon: a fraction; 0.01 is one point.
        samples: how many the statement rests on, of a split that took no part in the search.
    """

    epsilon: float
    delta: float
    samples: int
    split: str = "certification"


class Entry(msgspec.Struct, frozen=True):
    """A configuration with what is known about it. It was chosen on the split named ``search``.

    Attributes:
        allowed_loss: the most accuracy that it was allowed to lose against the full model when it was chosen, a
            fraction; None where no loss was asked for.
    """

    exits: dict[str, ExitSetting]
    search: Figures | None = None
    test: Figures | None = None
    certified: Certificate | None = None
    allowed_loss: float | None = None
    gates: dict[str, tuple[float, ...] | int] = msgspec.field(default_factory=dict)

    def configuration(self, name: str) -> Configuration:
        """The configuration, under a name."""
        return Configuration(name, self.exits, self.gates)


class Settings(Protocol):
    """Exits and gates as a configuration, an entry or a measurement sets them."""

    @property
    def exits(self) -> Mapping[str, ExitSetting]:
        """Exit id to head and threshold."""

    @property
    def gates(self) -> Mapping[str, tuple[float, ...] | int]:
        """Gate id to cut points or to a case."""


def settings_of(one: Settings) -> Hashable:
    """Return what is set, whatever its name: two that are equal do the same. Thresholds count as float32."""
    exits = sorted((id, own.head, float(np.float32(own.threshold))) for id, own in one.exits.items())
    return tuple(exits), tuple(sorted((id, str(own)) for id, own in one.gates.items()))


class Configurations(msgspec.Struct, frozen=True):
    """``configurations.json``: the named configurations and the front, cheapest first.

    Attributes:
        unit: of the costs that the search weighed: ``macs``, ``ms`` or ``joules``.
        method: how the front was searched for.
        note: what a user should know about the certificates; empty if there is nothing to say.
        digest: as in the manifest.
    """

    schema_version: str = SCHEMA_VERSION
    named: dict[str, Entry] = msgspec.field(default_factory=dict)
    front: tuple[Entry, ...] = ()
    unit: str = "macs"
    method: str = ""
    note: str = ""
    digest: str = ""

    def get(self, name: str) -> Configuration:
        """The configuration of that name. Raises ConfigurationError if there is none."""
        if name not in self.named:
            raise ConfigurationError(
                f"there is no configuration {name!r} in this bundle; it has: {', '.join(self.named)}"
            )
        return self.named[name].configuration(name)

    def allowed_loss(self, configuration: Configuration) -> float | None:
        """What the configuration of that name was allowed to lose; None where nothing was asked for."""
        entry = self.named.get(configuration.name)
        same = entry is not None and settings_of(entry) == settings_of(configuration)
        return entry.allowed_loss if same and entry is not None else None

    def within(self, budget: float) -> Configuration:
        """The most accurate configuration of the front, on the search split, that costs no more than ``budget``.

        Args:
            budget: relative to the full model; over 0.

        Raises:
            ConfigurationError: nothing is as cheap as that, or nothing was searched.
        """
        known = [entry for entry in (*self.front, *self.named.values()) if entry.search is not None]
        if not known:
            raise ConfigurationError(
                "this bundle has no searched configurations, so there is none for a budget",
                hint="Export with --data.",
            )
        cheapest = min(entry.search.cost for entry in known)  # type: ignore[union-attr]
        fitting = [entry for entry in known if entry.search.cost <= budget]  # type: ignore[union-attr]
        if not fitting:
            raise ConfigurationError(
                f"the budget is {budget:g} of the full model; the cheapest configuration costs {cheapest:.3f}"
            )
        best = max(fitting, key=lambda entry: (entry.search.accuracy, -entry.search.cost))  # type: ignore[union-attr]
        return best.configuration(f"budget {budget:g}")


def float32_midpoint(low: float, high: float) -> float:
    """A float32 t with ``low <= t < high`` for float32 numbers low < high: their midpoint.

    ``high > t`` holds and ``low > t`` does not, so routing at t separates the two, even if they are neighbours.
    """
    low32, high32 = np.float32(low), np.float32(high)
    middle = np.float32((float(low32) + float(high32)) / 2)
    return float(middle if middle < high32 else low32)
