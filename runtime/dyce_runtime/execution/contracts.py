"""The interface between a session and an engine: targets, devices and execution contexts.

A target is found through the entry-point group ``dyce.targets``, which names a class whose constructor takes no
arguments. It opens pieces on a device. Each call gets an execution context of that device, in which tensors have names.
Activations stay on the device: the session reads scores, labels, logits and gate values only.
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
# Samples outside of a context, with the tensors that they need to continue. Its type is private to the device.
Parked: TypeAlias = Any
Pool = Literal["private", "global"]
Mode = Literal["latency", "throughput"]
# The highest number of threads that is accepted. Every piece may have its own pool: with a thousand threads each,
# opening a bundle takes minutes.
_MOST_THREADS = 64
# Largest batch of an engine that is built ahead, if neither the caller nor the device determines it.
DEFAULT_MAX_BATCH = 8


@dataclass(frozen=True)
class PieceSpec:
    """The description of a piece for a target.

    Attributes:
        id: of the piece.
        path: the ONNX file.
        inputs, outputs: tensors, in the order of the graph.
        digest: hash of the file and of the weights that it refers to.
        for_some: whether it may run for a part of the samples, as a case of a choice.
    """

    id: str
    path: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    digest: str
    for_some: bool = False


class Artefact(NamedTuple):
    """The result of compiling a piece: the file, and whether it was built now rather than found."""

    path: Path
    built: bool


@dataclass(frozen=True)
class TargetSpec:
    """How pieces are compiled and opened.

    Attributes:
        threads: threads that one call may use, from 1 to 64 (or to the number of cores, if that is more); None lets the
            engine decide (one per physical core).
        pool: ``private`` does not affect the host application's own engine sessions; ``global`` shares the engine's
            process-wide thread pool, which the application then has to use everywhere.
        mode: ``latency`` minimises the duration of a single call; ``throughput`` divides the threads among several
            callers, if the engine supports it.
        precision: the precision in which the engine computes.
        devices: compute capabilities, such as ``sm86``, of the GPUs that engines are built for; if empty, the product
            chooses.
        max_batch: the most samples in one call of an engine that is built ahead; None takes the value that the existing
            engines were built for, or the default of the device.
        workspace_mib: scratch memory that a builder may use, in MiB; None sets no limit.
        engines: folders in which engines are looked for, in order; missing engines are built into the last one.
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
        """Raise RuntimeInputError if a value is out of range."""
        if self.threads is not None:
            whole("threads", self.threads, 1, max(_MOST_THREADS, os.cpu_count() or 1))
        one_of("pool", self.pool, get_args(Pool))
        one_of("mode", self.mode, get_args(Mode))
        if self.max_batch is not None:
            whole("max_batch", self.max_batch, 1)


class ExecutionContext(Protocol):
    """The tensors of one call, by name, for the samples that have not exited. Used by one call at a time.

    A context is empty at first and is filled with inputs, or with samples that were parked. Then pieces run in the
    order of the program. The value of a tensor is valid from the operation that writes it to the last operation of the
    program that reads it; its memory may then be reused for another tensor. Every method may raise
    :class:`dyce_runtime.errors.PieceError`.

    Attributes:
        rows: number of samples in the context; 0 at first.
    """

    rows: int

    def set_input(self, name: str, array: npt.NDArray[np.float32]) -> None:
        """Set an input (rows, ...) for the samples in the context; in an empty one this sets their number.

        Called once for every :class:`~dyce_runtime.execution.plan.Bring`. The array may be read-only, misaligned, in
        any order in memory, or of a subclass, and must not change before the context is closed or the input is set
        again. The context keeps a reference to the memory that it reads.
        """

    def run(self, piece: str, rows: Rows | None = None) -> None:
        """Run a piece. May return before it has finished.

        Args:
            piece: its id.
            rows: indices of the samples that it runs for, ascending and without repetition, fewer than all; None for
                all samples. The outputs keep their values for the other samples. Allowed only for pieces that were
                opened ``for_some``.
        """

    def copy(self, to: str, source: str, rows: Rows | None = None) -> None:
        """Copy tensor ``source`` to tensor ``to``, for all samples or, as in :meth:`run`, for some."""

    def read(self, *names: str) -> list[Array]:
        """Wait for tensors and return their values on the host, (rows, ...) each.

        The arrays belong to the context and are valid until its next method is called.
        """

    def computed_rows(self, rows: int) -> int:
        """Return the batch size that a piece computes for ``rows`` samples: engines built ahead have a few sizes.

        Compacting samples saves time only if this number becomes smaller.
        """

    def run_until_exit(self, steps: Sequence[Step]) -> tuple[LeaveAt | None, npt.NDArray[np.float32]]:
        """Run steps for a single sample until its score exceeds a threshold or is invalid, or to the last step.

        Equivalent to calling the other methods in turn, but without returning to the caller in between. A valid score
        is a number above 0: engines return NaN, 0 or less if they compute with NaN.

        Args:
            steps: the steps of one stage of a plan. A context may cache what it prepares for them by their identity,
                since plans are reused.

        Returns:
            the last exit that was evaluated, None if there was none, and the score (1,) float32 there, valid until the
            next method is called.
        """

    def keep(self, order: Rows, tensors: Sequence[str]) -> None:
        """Keep some of the samples: the sample at index ``order[i]`` moves to index i.

        Args:
            order: entry i is i itself, or at least ``len(order)``, so that no sample is overwritten before it is moved.
            tensors: the tensors that are read later; the values of all others are lost.
        """

    def gather(self, rows: Rows, tensors: Sequence[str]) -> Parked:
        """Copy tensors of some samples out of the context. The caller owns the copy, which is freed with its object."""

    def append(self, parked: Parked, start: int, stop: int) -> None:
        """Append samples that were gathered at the same place of the program, by copying their tensors.

        Args:
            parked: gathered samples.
            start, stop: range of the parked samples to append.
        """

    def wait(self) -> None:
        """Wait until all operations that were started have finished, for timing."""

    def __enter__(self) -> ExecutionContext:
        """Return the context itself."""

    def __exit__(self, *_: object) -> None:
        """Close the context, even if operations are running: the device may then reuse it for another call."""


class Device(Protocol):
    """Pieces that are open and ready to run.

    Attributes:
        max_rows: the most samples that fit into one context.
    """

    max_rows: int

    def context(self, rows: int) -> ExecutionContext:
        """Return a context for a call of up to ``rows`` samples, at most ``max_rows``.

        Waits for a free context if the device has a limited number. Raises PieceError if the device is closed.
        """

    def close(self) -> None:
        """Release all resources, after running calls have finished. Calling it twice is allowed."""


class Target(Protocol):
    """An engine that compiles pieces ahead of time and opens them on a device.

    Attributes:
        name: of the target, as in the entry point.
        spans: whether spans are worth their memory here; if launching a piece costs next to nothing, they are not.
        engines: whether it runs engines that are built ahead of time, instead of reading ONNX.
    """

    name: str
    spans: bool
    engines: bool

    def available(self) -> str | None:
        """Return None if it works on this machine, otherwise the reason and what to install.

        A target that has to import an engine or start a device to know this should also have a method ``installed``,
        which returns a first answer without doing so, since targets that are not used are queried as well.
        """

    def version(self) -> str:
        """Return the version of the engine, without importing it; ``unknown`` if it cannot be determined."""

    def best_batch(self, spec: TargetSpec, macs: int) -> int:
        """Return the chunk size into which larger calls are cut.

        Args:
            spec: how the pieces are opened.
            macs: multiply-accumulates of the model, for one sample.
        """

    def compiles(self) -> str | None:
        """Return None if pieces can be compiled on this machine, otherwise the reason and what to install."""

    def compile(self, piece: PieceSpec, spec: TargetSpec, folder: Path) -> Artefact:
        """Build the artefact of a piece into a folder, unless it contains a suitable one.

        If the engine reads ONNX, the artefact is the ONNX file itself, and nothing is written.
        """

    def open(self, pieces: Sequence[PieceSpec], tensors: Sequence[TensorLife], spec: TargetSpec) -> Device:
        """Load the pieces. The caller has to close the device.

        Args:
            pieces: the pieces to open.
            tensors: all tensors that the pieces read and write, and when they are needed: see
                :mod:`dyce_runtime.execution.memory`.
            spec: how the pieces are opened.

        Raises:
            TargetError: the target is not available here.
        """
