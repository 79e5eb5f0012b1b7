"""Configurations: which exits are on, with which head and at which threshold."""

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
# Names are used as labels of metrics and in log messages.
_LONGEST_NAME = 200


class ExitSetting(msgspec.Struct, frozen=True):
    """An exit that is on: the type of its head, and the float32 threshold strictly above which a sample exits."""

    head: str
    threshold: float


class Configuration(msgspec.Struct, frozen=True):
    """The exits and gates of a bundle that are on. Immutable.

    Attributes:
        name: at most 200 characters.
        exits: exit id to its setting. Exits that are not named are off; ``{}`` runs the full model.
        gates: gate id to its cut points, ascending, or to the index of the case that all samples take. A gate that is
            not named uses the cut points of the program.
    """

    name: str
    exits: dict[str, ExitSetting] = msgspec.field(default_factory=dict)
    gates: dict[str, tuple[float, ...] | int] = msgspec.field(default_factory=dict)

    def check(self, manifest: Manifest) -> None:
        """Raise ConfigurationError unless every exit, head and gate exists in the bundle and every value is valid."""
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
    """Return whether these are valid cut points: ``count`` finite numbers, strictly ascending as float32."""
    if len(points) != count or not all(is_real(point) for point in points):
        return False
    exact = np.array(points, np.float32)
    return bool(np.isfinite(exact).all() and np.all(np.diff(exact) > 0))


class Figures(msgspec.Struct, frozen=True):
    """The measured accuracy and cost of a configuration on one split.

    Attributes:
        accuracy: fraction of samples classified correctly.
        loss: accuracy of the full model on the same samples minus ``accuracy``.
        cost: mean cost relative to the full model, in the unit of the cost table that the search used.
        samples: number of samples in the split.
        share_per_exit: fraction of the samples that took each exit, ``final`` last.
        loss_error: paired standard error of ``loss``; None if it was not computed.
    """

    accuracy: float
    loss: float
    cost: float
    samples: int
    share_per_exit: tuple[float, ...]
    loss_error: float | None = None

    def __repr__(self) -> str:
        """Return accuracy, loss and cost, rounded."""
        error = "" if self.loss_error is None else f" ± {100 * self.loss_error:.2f}"
        return (
            f"<accuracy {self.accuracy:.1%}, loses {100 * self.loss:.2f}{error} points, costs {self.cost:.1%} of full, "
            f"on {self.samples} samples>"
        )


class Certificate(msgspec.Struct, frozen=True):
    """A statistical guarantee: with probability at least 1 - ``delta`` the loss of accuracy is at most ``epsilon``.

    Attributes:
        epsilon: bound of the accuracy lost against the full model, as a fraction: 0.01 is one percentage point.
        delta: probability that the guarantee does not hold.
        samples: number of samples that it is based on.
        split: the split with these samples, which was not used in the search.
    """

    epsilon: float
    delta: float
    samples: int
    split: str = "certification"


class Entry(msgspec.Struct, frozen=True):
    """A configuration and the figures that are known about it.

    Attributes:
        exits, gates: see :class:`Configuration`.
        search: figures on the search split, on which it was chosen.
        test: figures on the test split.
        certified: the guarantee of its accuracy; None if there is none.
        allowed_loss: the accuracy that it was allowed to lose against the full model when it was chosen, as a
            fraction; None if no limit was requested.
    """

    exits: dict[str, ExitSetting]
    search: Figures | None = None
    test: Figures | None = None
    certified: Certificate | None = None
    allowed_loss: float | None = None
    gates: dict[str, tuple[float, ...] | int] = msgspec.field(default_factory=dict)

    def configuration(self, name: str) -> Configuration:
        """Return the configuration under the given name."""
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
    """The content of ``configurations.json``: the named configurations and the Pareto front.

    Attributes:
        named: name to configuration.
        front: the Pareto front of the search, cheapest first.
        unit: unit of the costs that the search used: ``macs``, ``ms`` or ``joules``.
        method: the search method that found the front.
        note: a remark about the certificates for the user; may be empty.
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
        """Return the configuration of that name. Raises ConfigurationError if there is none."""
        if name not in self.named:
            raise ConfigurationError(
                f"there is no configuration {name!r} in this bundle; it has: {', '.join(self.named)}"
            )
        return self.named[name].configuration(name)

    def allowed_loss(self, configuration: Configuration) -> float | None:
        """Return the loss that a named configuration was allowed when it was chosen; None if there was no limit.

        None, too, if the bundle has no configuration of that name with the same exits.
        """
        entry = self.named.get(configuration.name)
        same = entry is not None and settings_of(entry) == settings_of(configuration)
        return entry.allowed_loss if same and entry is not None else None

    def within(self, budget: float) -> Configuration:
        """Return the searched configuration with the highest accuracy on the search split within a cost limit.

        Args:
            budget: the highest cost, relative to the full model.

        Raises:
            ConfigurationError: no configuration is that cheap, or the bundle has no searched configurations.
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
    """Return the midpoint of two float32 numbers low < high as a float32 t with ``low <= t < high``.

    A threshold of t separates the two: ``high > t`` holds and ``low > t`` does not, even if they are adjacent floats.
    """
    low32, high32 = np.float32(low), np.float32(high)
    middle = np.float32((float(low32) + float(high32)) / 2)
    return float(middle if middle < high32 else low32)
