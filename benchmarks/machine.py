"""Describe the machine and the package versions with which a figure was measured."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from typing import Any

from dyce_runtime.measure.bench import cpu_name


def describe(*packages: str) -> dict[str, str]:
    """Return the CPU, its cores, the date, and the versions of Python and the given packages."""
    facts = {"CPU": cpu_name(), "cores": str(os.cpu_count()), "date": time.strftime("%Y-%m-%d")}
    return facts | {"python": platform.python_version()} | {package: version(package) for package in packages}


def sentence(facts: dict[str, str]) -> str:
    """Format such a description for a page."""
    return ", ".join(f"{key} {value}" for key, value in facts.items())


def apart(measure: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Call ``measure`` in its own process, since the engine's thread pool is created once per process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(measure, *arguments).result()
