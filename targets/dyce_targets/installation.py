"""Check whether a Python module is installed, without importing it, and whether it loads."""

from __future__ import annotations

import importlib
import importlib.util
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from types import ModuleType

from dyce_runtime.errors import TargetError


def missing(module: str, install: str) -> str | None:
    """Return None if a module is installed, otherwise a message that it is not, followed by ``install``."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # what is found under the name is not a module
        spec = None
    # Without an origin it is an empty folder, left by an incomplete removal, which Python would import.
    return f"{module} is not installed; {install}" if spec is None or spec.origin is None else None


def load(module: str, needed: str, install: str) -> ModuleType:
    """Import a module.

    Args:
        module: its name.
        needed: an attribute that it must have.
        install: how to install it, for the message.

    Raises:
        TargetError: the module is not installed, lacks the attribute, or raises an exception when it is imported.
    """
    if reason := missing(module, install):
        raise TargetError(reason)
    try:
        found = importlib.import_module(module)
        getattr(found, needed)
    except (Exception, SystemExit) as error:  # importing a broken installation may raise anything
        raise TargetError(
            f"{module} is installed and does not load: {type(error).__name__}: {error}",
            hint=f"Install it again; {install}.",
        ) from error
    return found


def version_of(module: str) -> str:
    """Return the version of the distribution that provides a module, such as onnxruntime-gpu; or ``unknown``."""
    try:
        return version(module)
    except PackageNotFoundError:
        distributions = packages_distributions().get(module)
        return version(distributions[0]) if distributions else "unknown"
