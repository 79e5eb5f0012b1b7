"""Finding targets: through the entry-point group ``dyce.targets``, so that others can add theirs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, cast

from dyce_runtime.contracts import Target
from dyce_runtime.errors import TargetError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint, EntryPoints

GROUP = "dyce.targets"
# Names the target where nobody else does.
VARIABLE = "DYCE_TARGET"


def names() -> list[str]:
    """Names of all installed targets, available on this machine or not."""
    return sorted(point.name for point in _entry_points())


def working() -> list[str]:
    """Names of those that are available on this machine."""
    return [name for name in names() if get(name).available() is None]


def get(name: str) -> Target:
    """An installed target by name. Raises TargetError if there is none."""
    for point in _entry_points():
        if point.name == name:
            return _make(point)
    raise TargetError(f"there is no target {name!r}; installed: {', '.join(names()) or 'none'}")


def named() -> str | None:
    """The target that the environment names, if it names one."""
    return os.environ.get(VARIABLE) or None


def find(name: str | None = None) -> Target:
    """The named target, or that which the environment names, or the first that is available here.

    Raises:
        TargetError: not installed, or not available; says why for each.
    """
    reasons = []
    name = named() if name is None else name
    for candidate in names() if name is None else [name]:
        target = get(candidate)
        reason = target.available()
        if reason is None:
            return target
        reasons.append(f"{target.name}: {reason}")
    raise TargetError(
        "no target is available on this machine" + "".join(f"; {reason}" for reason in reasons),
        hint="On a CPU: pip install 'dyce-export[cpu]'.",
    )


def _entry_points() -> EntryPoints:
    from importlib.metadata import entry_points  # slow to import, and not needed before a bundle is loaded

    return entry_points(group=GROUP)


def _make(point: EntryPoint) -> Target:
    return cast(Target, point.load()())
