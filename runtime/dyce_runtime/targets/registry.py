"""Find targets through the entry-point group ``dyce.targets``, so that other packages can add theirs.

A target that does not load, or raises when it is queried, counts as unavailable and does not affect the others.
"""

from __future__ import annotations

import os
import sys
from functools import lru_cache
from typing import TYPE_CHECKING, cast

from dyce_runtime.arguments import shown
from dyce_runtime.errors import TargetError
from dyce_runtime.execution.contracts import Target

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint, EntryPoints

GROUP = "dyce.targets"
# The environment variable with the default target.
VARIABLE = "DYCE_TARGET"
# The target in which exports are checked and records are made, whatever else a machine can run.
REFERENCE = "onnxruntime"


def names() -> list[str]:
    """Return the sorted names of all installed targets, whether or not they are available on this machine."""
    return sorted({point.name for point in _entry_points()})


def candidates() -> list[str]:
    """Return the names of the targets that may be available, as far as is known without importing an engine."""
    return [name for name in names() if _reason(name, "installed") is None]


def is_installed(name: str) -> bool:
    """Return whether an installed package provides the target, so that every process of this installation has it."""
    return any(point.name == name for point in _entry_points())


def working() -> list[str]:
    """Return the names of the targets that are available on this machine. This imports their engines."""
    return [name for name in candidates() if unavailable(name) is None]


def unavailable(name: str) -> str | None:
    """Return why a target does not work on this machine; None if it does. Errors of the target are the reason."""
    return _reason(name, "available") or _reason(name, "compiles")


def unable_to_compile(name: str) -> str | None:
    """Return why a target cannot compile pieces here; None if it can. Errors of the target are the reason."""
    return _reason(name, "compiles")


def get(name: str) -> Target:
    """Return an installed target by name. Raises TargetError if there is none, or it does not load."""
    for point in _entry_points():
        if point.name == name:
            return _make(point)
    raise TargetError(f"there is no target {shown(name)}; installed: {', '.join(names()) or 'none'}")


def named() -> str | None:
    """Return the name of the target in the environment variable ``DYCE_TARGET``; None if it is not set."""
    return os.environ.get(VARIABLE) or None


def find(name: str | None = None) -> Target:
    """Return the named target, or the one that the environment names, or the first that is available here.

    Raises:
        TargetError: the target is not installed or not available, or none is; the message says why.
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
    """Return the target in which exports are checked. Raises TargetError if it is not available."""
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
    """Call a method of a target that returns a reason or None. One that the target lacks defaults to ``available``."""
    try:
        target = get(name)
        return cast("str | None", getattr(target, question, target.available)())
    except TargetError as error:
        return error.message
    except (Exception, SystemExit) as error:  # importing a broken package may raise anything
        return f"{type(error).__name__}: {error}"


def _entry_points() -> EntryPoints:
    return _scan(tuple(sys.path))


@lru_cache(maxsize=1)
def _scan(path: tuple[str, ...]) -> EntryPoints:
    """Look through all installed packages, which takes tens of milliseconds, once for each module search path."""
    from importlib.metadata import entry_points  # imported late: slow, and not needed before a bundle is loaded

    return entry_points(group=GROUP)


def _make(point: EntryPoint) -> Target:
    try:
        return cast(Target, point.load()())
    except (Exception, SystemExit) as error:  # as above
        raise TargetError(
            f"the target {point.name} ({point.value}) does not load: {type(error).__name__}: {error}",
            hint="Install the package that brings it again, or remove it.",
        ) from error
