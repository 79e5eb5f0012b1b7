"""Whether a Python module is installed and whether it loads: the first is known without importing it."""

from __future__ import annotations

import importlib
import importlib.util
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from types import ModuleType

from dyce_runtime.errors import TargetError


def missing(module: str, install: str) -> str | None:
    """None if there is such a module, otherwise that it is not installed, and what to do."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # something in its place that is no module
        spec = None
    # An empty folder is what a broken removal leaves behind; it would be imported.
    return f"{module} is not installed; {install}" if spec is None or spec.origin is None else None


def load(module: str, needed: str, install: str) -> ModuleType:
    """Import a module.

    Args:
        needed: what has to be in it.

    Raises:
        TargetError: it is not installed, or it raises anything.
    """
    if reason := missing(module, install):
        raise TargetError(reason)
    try:
        found = importlib.import_module(module)
        getattr(found, needed)
    except (Exception, SystemExit) as error:  # an installation may be broken in any way
        raise TargetError(
            f"{module} is installed and does not load: {type(error).__name__}: {error}",
            hint=f"Install it again; {install}.",
        ) from error
    return found


def version_of(module: str) -> str:
    """The version of the distribution that brings a module, such as onnxruntime-gpu; ``unknown`` if none does."""
    try:
        return version(module)
    except PackageNotFoundError:
        distributions = packages_distributions().get(module)
        return version(distributions[0]) if distributions else "unknown"
