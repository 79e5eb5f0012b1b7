"""What a target has to offer: the only thing that the session knows about engines.

A target is found through the entry-point group ``dyce.targets``, which names a class with no-argument constructor. It
opens pieces on a device; a call then has an execution context of that device, in which tensors have names. Activations
stay there: the session sees scores, labels and logits.
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
from dyce_runtime.execution.memory import TensorLife
from dyce_runtime.execution.plan import LeaveAt, Step

Rows: TypeAlias = "npt.NDArray[np.intp]"
Array: TypeAlias = "npt.NDArray[Any]"
# Samples outside of a context, with the tensors that they need to go on; what it is, is the device's affair.
Parked: TypeAlias = Any
Pool = Literal["private", "global"]
Mode = Literal["latency", "throughput"]
# Every piece may have its own pool: with a thousand threads each, opening a bundle takes minutes.
_MOST_THREADS = 64
# Samples in one call where nobody says how many, and nothing is known of the device.
DEFAULT_MAX_BATCH = 8


@dataclass(frozen=True)
class PieceSpec:
    """A piece as a target sees it: its id, the ONNX file and the tensors in and out.

    Attributes:
        digest: of the file and of the weights that it refers to.
        for_some: whether it may run for some of the samples only: a case of a choice.
    """

    id: str
    path: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    digest: str
    for_some: bool = False


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
        max_batch: the most samples in one call of an engine that is built ahead; None takes what the engines that are
            there were built for, or what suits the device.
        workspace_mib: scratch memory that a builder may use, in MiB; None sets no limit.
        engines: folders in which engines are looked for, one after another; what is missing is built into the last.
    """

    threads: int | None = None
    pool: Pool = "private"
    mode: Mode = "latency"
    precision: Literal["float32", "bfloat16"] = "float32"
    devices: tuple[str, ...] = ()
    max_batch: int | None = None
    workspace_mib: int | None = None
    engines: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        """Raise RuntimeInputError for what no engine can be asked for."""
        if self.threads is not None:
            whole("threads", self.threads, 1, max(_MOST_THREADS, os.cpu_count() or 1))
        one_of("pool", self.pool, get_args(Pool))
        one_of("mode", self.mode, get_args(Mode))
        if self.max_batch is not None:
            whole("max_batch", self.max_batch, 1)


class ExecutionContext(Protocol):
    """The tensors of one call, by name, for the samples that are still in it. Used by one call at a time.

    A context starts empty: with inputs, or with samples that were parked. Then pieces run in the order of the program.
    What a tensor holds is valid from the operation that writes it to the last one of the program that reads it; its
    memory may then hold another tensor. Every method may raise :class:`dyce_runtime.errors.PieceError`.

    Attributes:
        rows: samples in it; 0 at the start.
    """

    rows: int

    def set_input(self, name: str, array: npt.NDArray[np.float32]) -> None:
        """Bring an input (rows, ...) of the samples that are in the context; the first one says how many there are.

        Called once for every :class:`~dyce_runtime.execution.plan.Bring`. The array may be read-only, misaligned, in
        any order in memory, or of a subclass, and must not change before the context is closed or the input is set
        again. The context keeps what it reads from.
        """

    def run(self, piece: str, rows: Rows | None = None) -> None:
        """Compute what a piece writes from what it reads. May return before that is done.

        Args:
            rows: indices of the samples that it runs for, ascending and without repetition, fewer than all; what it
                writes keeps its value for the others. Only of pieces that were opened ``for_some``.
        """

    def copy(self, to: str, source: str, rows: Rows | None = None) -> None:
        """Let a tensor be a copy of another one, for all samples or, as in :meth:`run`, for some."""

    def read(self, *names: str) -> list[Array]:
        """What tensors hold, (rows, ...) each, on the host; waits for it.

        The arrays belong to the context and are valid until its next method is called.
        """

    def computed_rows(self, rows: int) -> int:
        """For how many samples a piece computes if it runs for that many: engines built ahead have a few sizes.

        Moving samples together pays only where this becomes fewer.
        """

    def run_until_exit(self, steps: Sequence[Step]) -> tuple[LeaveAt | None, npt.NDArray[np.float32]]:
        """With one sample, run steps until its score is above a threshold or not valid, or to the last one.

        The same as the other methods in turn, with no way back to the caller in between. A valid score is a number
        above 0: engines give NaN, 0 or less where they compute with NaN.

        Args:
            steps: of one stage of a plan; a context may keep what it prepares for them, since plans come again.

        Returns:
            the last place where it could leave, None if there was none, and its score (1,), valid until the next
            method is called.
        """

    def keep(self, order: Rows, tensors: Sequence[str]) -> None:
        """Keep some of the samples: the one at place ``order[i]`` moves to place i.

        Args:
            order: each entry is i itself, or at least ``len(order)``: no sample is overwritten before it has moved.
            tensors: the ones that are read later; of others nothing is kept.
        """

    def gather(self, rows: Rows, tensors: Sequence[str]) -> Parked:
        """Copy tensors of some samples out of the context, to outlive it. The caller owns them; dropping frees them."""

    def append(self, parked: Parked, start: int, stop: int) -> None:
        """Add samples that were gathered at this place of the program; their tensors are copied in.

        Args:
            start, stop: which of the parked samples.
        """

    def wait(self) -> None:
        """Return when all that was asked for is done: what is timed has then been computed."""

    def __enter__(self) -> ExecutionContext:
        """The context itself."""

    def __exit__(self, *_: object) -> None:
        """Close it, whatever is still running: the device may use its memory for another call."""


class Device(Protocol):
    """Open pieces, ready to run.

    Attributes:
        max_rows: samples that fit into one context.
    """

    max_rows: int

    def context(self, rows: int) -> ExecutionContext:
        """A context for a call of up to ``rows`` samples, at most ``max_rows``.

        Waits for one where the device has few. Raises PieceError if the device is closed.
        """

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

    def open(self, pieces: Sequence[PieceSpec], tensors: Sequence[TensorLife], spec: TargetSpec) -> Device:
        """Load the pieces. Raises TargetError if the target is not available here.

        Args:
            tensors: all that the pieces read and write, and when they are needed: see
                :mod:`dyce_runtime.execution.memory`.
        """
