"""Finding targets: through the entry-point group ``dyce.targets``, so that others can add theirs.

A target that does not load, or fails when it is asked, counts as unavailable: it takes nothing else down.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, cast

from dyce_runtime.arguments import shown
from dyce_runtime.errors import TargetError
from dyce_runtime.execution.contracts import Target

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint, EntryPoints

GROUP = "dyce.targets"
# Names the target where nobody else does.
VARIABLE = "DYCE_TARGET"
# In which exports are checked and records are made, whatever else a machine can run.
REFERENCE = "onnxruntime"


def names() -> list[str]:
    """Names of all installed targets, available on this machine or not."""
    return sorted({point.name for point in _entry_points()})


def candidates() -> list[str]:
    """Names of those that may be available, as far as can be told without importing an engine."""
    return [name for name in names() if _reason(name, "installed") is None]


def is_installed(name: str) -> bool:
    """Whether a package brings it, so that every process of this installation has it."""
    return any(point.name == name for point in _entry_points())


def working() -> list[str]:
    """Names of those that are available on this machine. Their engines are imported to know."""
    return [name for name in candidates() if unavailable(name) is None]


def unavailable(name: str) -> str | None:
    """Why a target does not work on this machine, whatever goes wrong when it is asked; None if it does."""
    return _reason(name, "available") or _reason(name, "compiles")


def unable_to_compile(name: str) -> str | None:
    """Why a target cannot compile pieces here, whatever goes wrong when it is asked; None if it can."""
    return _reason(name, "compiles")


def get(name: str) -> Target:
    """An installed target by name. Raises TargetError if there is none, or it does not load."""
    for point in _entry_points():
        if point.name == name:
            return _make(point)
    raise TargetError(f"there is no target {shown(name)}; installed: {', '.join(names()) or 'none'}")


def named() -> str | None:
    """The target that the environment names, if it names one."""
    return os.environ.get(VARIABLE) or None


def find(name: str | None = None) -> Target:
    """The named target, or that which the environment names, or the first that is available here.

    Raises:
        TargetError: not installed, or not available; says why for each.
    """
    wanted = named() if name is None else name
    if wanted is not None:
        return _named(wanted, "" if name is not None else f" ({VARIABLE} names this target)")
    reasons = []
    for candidate in names():
        reason = _reason(candidate, "installed") or _reason(candidate, "available")
        if reason is None:
            return get(candidate)
        reasons.append(f"{candidate}: {reason}")
    raise TargetError(
        "no target is available on this machine" + "".join(f"; {reason}" for reason in reasons),
        hint="On a CPU: pip install 'dyce-export[cpu]'.",
    )


def reference() -> Target:
    """The target in which exports are checked. Raises TargetError if it is not available."""
    return find(REFERENCE)


def _named(name: str, origin: str) -> Target:
    target = get(name)
    reason = _reason(name, "available")
    if reason is not None:
        others = ", ".join(other for other in candidates() if other != name)
        raise TargetError(
            f"this machine does not run the target {name}: {reason}{origin}",
            hint=f"Installed here: {others}." if others else "On a CPU: pip install 'dyce-export[cpu]'.",
        )
    return target


def _reason(name: str, question: str) -> str | None:
    """The answer of a target; where it has no ``installed`` that of ``available``."""
    try:
        target = get(name)
        return cast("str | None", getattr(target, question, target.available)())
    except TargetError as error:
        return error.message
    except (Exception, SystemExit) as error:  # whatever a package does when it is imported
        return f"{type(error).__name__}: {error}"


def _entry_points() -> EntryPoints:
    from importlib.metadata import entry_points  # slow to import, and not needed before a bundle is loaded

    return entry_points(group=GROUP)


def _make(point: EntryPoint) -> Target:
    try:
        return cast(Target, point.load()())
    except (Exception, SystemExit) as error:  # as above
        raise TargetError(
            f"the target {point.name} ({point.value}) does not load: {type(error).__name__}: {error}",
            hint="Install the package that brings it again, or remove it.",
        ) from error
