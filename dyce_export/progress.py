"""How the pipeline tells what it is doing; the command line draws it, a library call is silent."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

_Item = TypeVar("_Item")


class Progress:
    """Times the stages of an export. Subclasses show them.

    Attributes:
        seconds: stage name to the seconds it took.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A named stretch of work."""
        start = time.perf_counter()
        self.started(name)
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def track(self, items: Iterable[_Item], description: str) -> Iterable[_Item]:
        """Pass items through, showing how many are done."""
        return items

    def started(self, name: str) -> None:
        """Called when a stage begins."""
