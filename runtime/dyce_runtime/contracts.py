"""What a target has to offer: the only thing that the session knows about engines.

A target is found through the entry-point group ``dyce.targets``, which names a class with no-argument
constructor. Handles are opaque to the session: arrays on a CPU, device memory on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from dyce_runtime.manifest import TensorSpec

Handle: TypeAlias = Any
Pool = Literal["private", "global"]


@dataclass(frozen=True)
class PieceSpec:
    """A piece as a target sees it: its id, the ONNX file and the tensors in and out."""

    id: str
    path: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class TargetSpec:
    """How pieces are compiled and opened; the same on both sides.

    Attributes:
        threads: threads that one call may use; None lets the engine decide (one per physical core).
        pool: ``private`` leaves the host application's own engine sessions alone; ``global`` shares the
            engine's process-wide pool, which the application then has to use everywhere.
        precision: the precision that the pieces are compiled for.
    """

    threads: int | None = None
    pool: Pool = "private"
    precision: Literal["float32"] = "float32"


class Device(Protocol):
    """Open pieces, ready to run. Every method may raise :class:`dyce_runtime.errors.PieceError`."""

    def prepare(self, max_batch: int) -> None:
        """Allocate and warm up for batches of up to ``max_batch`` samples."""

    def put(self, array: npt.NDArray[Any]) -> Handle:
        """A handle to ``array`` on the device."""

    def run(self, piece: str, handles: Sequence[Handle]) -> list[Handle]:
        """Run a piece on its inputs, in the order of its spec; may return before the result is computed."""

    def take(self, handle: Handle, rows: npt.NDArray[np.intp]) -> Handle:
        """Keep the given rows (samples) only: compaction."""

    def fetch(self, handle: Handle) -> npt.NDArray[Any]:
        """The values, on the host; waits for them."""

    def close(self) -> None:
        """Release everything. Calling it twice is allowed."""


class Target(Protocol):
    """An engine that compiles pieces ahead of time and opens them on a device."""

    name: str

    def available(self) -> str | None:
        """None if it works on this machine, otherwise the reason and what to install."""

    def compile(self, piece: PieceSpec, spec: TargetSpec) -> Path:
        """Build the artefact of a piece; the ONNX file itself where the engine reads ONNX."""

    def open(self, pieces: Sequence[PieceSpec], spec: TargetSpec) -> Device:
        """Load the pieces. Raises TargetError if the target is not available here."""
