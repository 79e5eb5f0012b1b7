"""Progress of the pipeline: the command line displays it, library calls are silent."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

_Item = TypeVar("_Item")


class Progress:
    """Measures the stages of an export. Subclasses display them.

    Attributes:
        seconds: stage name to the seconds spent in it.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure the enclosed block as part of a named stage."""
        start = time.perf_counter()
        self.started(name)
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def track(self, items: Iterable[_Item], description: str) -> Iterable[_Item]:
        """Yield the items unchanged; subclasses display how many are done."""
        return items

    def started(self, name: str) -> None:
        """Handle the beginning of a stage; does nothing here."""
