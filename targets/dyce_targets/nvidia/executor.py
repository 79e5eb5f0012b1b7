"""What a lane asks of a GPU: a few things, in order, on one stream.

Behind it stands the driver with the engines, or in tests a double that computes on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

# Captured work; what it is, is the executor's affair.
Graph: TypeAlias = Any


class Executor(Protocol):
    """A stream of a GPU. But for :meth:`wait` nothing waits for what was asked before.

    Each method may raise anything; a later call must work again if the GPU does.
    """

    def allocate(self, size: int) -> int:
        """Address of so many new bytes in device memory, aligned for any type."""

    def pinned(self, size: int) -> npt.NDArray[np.uint8]:
        """(size,) bytes of the host that the device reads and writes at full speed."""

    def capture(self, work: Callable[[], None]) -> Graph:
        """What ``work`` enqueues, as a graph; nothing of it runs."""

    def launch(self, graph: Graph) -> None:
        """Run what was captured."""

    def enqueue(self, piece: str, rows: int, addresses: Mapping[str, int]) -> None:
        """Run the engine of a piece on so many samples.

        Args:
            addresses: by name, of all its inputs and outputs.
        """

    def upload(self, address: int, array: npt.NDArray[Any]) -> None:
        """Copy a pinned array to the device; it must not change before :meth:`wait`."""

    def download(self, array: npt.NDArray[Any], address: int) -> None:
        """Copy from the device to a pinned array, which holds it after :meth:`wait`."""

    def copy(self, destination: int, source: int, size: int) -> None:
        """Copy bytes within the device; the two do not overlap."""

    def wait(self) -> None:
        """Wait until all that was asked for is done. Raises what went wrong meanwhile."""

    def close(self) -> None:
        """Free everything."""
