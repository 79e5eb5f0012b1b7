"""The machine and the versions that a figure belongs to."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import version

from dyce_runtime.bench import cpu_name


def describe(*packages: str) -> dict[str, str]:
    """CPU, cores, date, Python and the versions of the given packages."""
    facts = {"CPU": cpu_name(), "cores": str(os.cpu_count()), "date": time.strftime("%Y-%m-%d")}
    return facts | {"python": platform.python_version()} | {package: version(package) for package in packages}


def sentence(facts: dict[str, str]) -> str:
    """The same as words for a page."""
    return ", ".join(f"{key} {value}" for key, value in facts.items())
