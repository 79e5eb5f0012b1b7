"""What a target has to offer: the only thing that the session knows about engines.

A target is found through the entry-point group ``dyce.targets``, which names a class with no-argument
constructor. Activations stay in the lanes of its device: the session sees confidences, labels and logits.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from dyce_runtime.arguments import one_of, whole
from dyce_runtime.bundle.manifest import TensorSpec
from dyce_runtime.execution.plan import Step

Handle: TypeAlias = Any
Pool = Literal["private", "global"]
Mode = Literal["latency", "throughput"]
# Every piece may have its own pool: with a thousand threads each, opening a bundle takes minutes.
_MOST_THREADS = 64


@dataclass(frozen=True)
class PieceSpec:
    """A piece as a target sees it: its id, the ONNX file and the tensors in and out.

    Attributes:
        digest: of the file and of the weights that it refers to.
    """

    id: str
    path: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    digest: str


def carried(specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """Those of the tensors that are kept for later pieces."""
    return tuple(spec for spec in specs if spec.lifetime == "carried")


class Artefact(NamedTuple):
    """What compiling a piece gave, and whether it had to be built for that."""

    path: Path
    built: bool


@dataclass(frozen=True)
class TargetSpec:
    """How pieces are compiled and opened; the same on both sides.

    Attributes:
        threads: threads that one call may use; None lets the engine decide (one per physical core).
        pool: ``private`` leaves the host application's own engine sessions alone; ``global`` shares the
            engine's process-wide pool, which the application then has to use everywhere.
        mode: ``latency`` answers one caller soonest; ``throughput`` shares the threads out among several callers, where
            the engine can.
        precision: what the engine computes in.
        devices: compute capabilities, such as ``sm86``, of the GPUs that engines are built for; without any, the
            product chooses.
        max_batch: the most samples in one call of an engine that is built ahead.
        workspace_mib: scratch memory that a builder may use, in MiB; None sets no limit.
        engines: folders in which engines are looked for, one after another; what is missing is built into the last.
    """

    threads: int | None = None
    pool: Pool = "private"
    mode: Mode = "latency"
    precision: Literal["float32", "bfloat16"] = "float32"
    devices: tuple[str, ...] = ()
    max_batch: int = 8
    workspace_mib: int | None = None
    engines: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        """Raise RuntimeInputError for what no engine can be asked for."""
        if self.threads is not None:
            whole("threads", self.threads, 1, max(_MOST_THREADS, os.cpu_count() or 1))
        one_of("pool", self.pool, get_args(Pool))
        one_of("mode", self.mode, get_args(Mode))
        whole("max_batch", self.max_batch, 1)


class Lane(Protocol):
    """The buffers of one call, with the activations that are live in it. Used by one call at a time.

    Attributes:
        rows: samples in it.
    """

    rows: int

    def put(self, images: npt.NDArray[np.float32], name: str) -> None:
        """Start with images (N, C, H, W), which must not change before the last :meth:`run`.

        They may be read-only, misaligned, in any order in memory, or of a subclass. The lane keeps what it reads from.

        Where a network ran before they are of the samples that are in the lane.

        Args:
            name: of the input that they are for.
        """

    def run(self, piece: str) -> None:
        """Run a segment or a span on what is live; its outputs are then. May return before they are computed."""

    def rewind(self) -> None:
        """Make the inputs of the last :meth:`run` live again."""

    def decide(self, head: str | None = None) -> npt.NDArray[np.float32]:
        """Confidences (rows,) of a head on what is live, or of the final head, in which the last run ended.

        They are valid until the next call of this method.
        """

    def until_confident(self, steps: Sequence[Step]) -> tuple[Step, npt.NDArray[np.float32]]:
        """With one sample, run steps until its confidence is above the threshold of one or not valid, or to the last.

        A valid confidence is a number above 0: engines give NaN, 0 or less where the scores hold NaN.

        The same as :meth:`run` and :meth:`decide` in turn, with no way back to the caller in between; of the lane
        only :meth:`answers` is valid after it. Returns the step at which it left and its confidence (1,).

        Args:
            steps: of a plan; a lane may keep what it prepares for them, since plans come again.
        """

    def answers(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Logits (rows, classes) and labels (rows,) of the last decision, valid until the next one."""

    def compact(self, sources: npt.NDArray[np.intp], places: npt.NDArray[np.intp], rows: int) -> None:
        """Copy the samples at ``sources`` over those at ``places``, then keep the first ``rows``."""

    def take(self, rows: npt.NDArray[np.intp]) -> Handle:
        """A copy of some samples of what is live and of what was left for later, which outlives the call."""

    def add(self, handle: Handle) -> None:
        """Append samples that were taken behind the same piece."""

    def live(self) -> list[npt.NDArray[Any]]:
        """What is live, on the host; valid until the next :meth:`run`. Nothing where a network has ended."""

    def left(self) -> dict[str, npt.NDArray[Any]]:
        """What pieces have left for later heads since the first :meth:`put`, by name, on the host.

        It moves with the samples, and stays where another network starts.
        """

    def __enter__(self) -> Lane:
        """The lane itself."""

    def __exit__(self, *_: object) -> None:
        """Give the buffers back. The lane must not be used any more."""


class Device(Protocol):
    """Open pieces, ready to run. What its lanes do may raise :class:`dyce_runtime.errors.PieceError`."""

    def lane(self, rows: int) -> Lane:
        """Buffers for a call of up to ``rows`` samples, from a pool; waits for one where the device has few."""

    def close(self) -> None:
        """Release everything; calls that are running end. Calling it twice is allowed."""


class Target(Protocol):
    """An engine that compiles pieces ahead of time and opens them on a device.

    Attributes:
        spans: whether spans are worth their memory here; where launching a piece costs nothing they are not.
        engines: whether it runs engines that are built ahead of time, instead of reading ONNX.
    """

    name: str
    spans: bool
    engines: bool

    def available(self) -> str | None:
        """None if it works on this machine, otherwise the reason and what to install.

        It is asked of targets that will not run: a target that has to import an engine or start a device to know has
        another method, ``installed``, for a first look without that.
        """

    def version(self) -> str:
        """Of the engine, without importing it; ``unknown`` where nothing says so."""

    def best_batch(self, spec: TargetSpec, macs: int) -> int:
        """How many samples should run at once where there are more; larger calls are cut into chunks of so many.

        Args:
            macs: multiply-accumulates of the model, for one sample.
        """

    def compiles(self) -> str | None:
        """None if pieces can be compiled on this machine, otherwise the reason and what to install."""

    def compile(self, piece: PieceSpec, spec: TargetSpec, folder: Path) -> Artefact:
        """Build the artefact of a piece into a folder, unless a fitting one is there.

        Where the engine reads ONNX, that is the ONNX file itself, and nothing is written.
        """

    def open(self, pieces: Sequence[PieceSpec], spec: TargetSpec) -> Device:
        """Load the pieces. Raises TargetError if the target is not available here."""
