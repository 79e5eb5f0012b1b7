"""The interface of :mod:`dyce_targets.nvidia.device` to a GPU: a few operations, in order, on one stream.

It is implemented by the driver with an engine, and in tests by a double that computes on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

# Captured work. Its type is private to the executor.
Graph: TypeAlias = Any


class Executor(Protocol):
    """A stream of a GPU. All operations on it are asynchronous; only :meth:`wait` waits for them.

    Each method may raise any exception. Later calls must work again, provided that the GPU does.
    """

    def allocate(self, size: int) -> int:
        """Allocate ``size`` bytes of device memory, aligned for any type; return their address."""

    def pinned(self, size: int) -> npt.NDArray[np.uint8]:
        """Allocate page-locked host memory (size,) uint8, which the device reads and writes at full speed."""

    def capture(self, work: Callable[[], None]) -> Graph:
        """Return what ``work`` enqueues as a graph. It may run meanwhile, as a warm-up."""

    def launch(self, graph: Graph) -> None:
        """Run a captured graph."""

    def enqueue(self, piece: str, rows: int, addresses: Mapping[str, int]) -> None:
        """Run the engine of a piece on ``rows`` samples. Called only in the ``work`` of :meth:`capture`.

        Args:
            piece: id of the piece.
            rows: number of samples.
            addresses: name to device address, for all inputs and outputs of the piece.
        """

    def upload(self, address: int, array: npt.NDArray[Any]) -> None:
        """Copy a pinned array to the device; it must not change before :meth:`wait`."""

    def download(self, array: npt.NDArray[Any], address: int) -> None:
        """Copy from the device to a pinned array, which holds it after :meth:`wait`."""

    def copy(self, destination: int, source: int, size: int) -> None:
        """Copy bytes within the device; the two do not overlap."""

    def wait(self) -> None:
        """Wait until all operations have finished. Raises if one of them failed."""

    def close(self) -> None:
        """Free all memory, graphs and the stream."""
