"""Run the whole program for all samples, without exits, to record, measure or compare what pieces compute."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from dyce_runtime.bundle.manifest import ANSWER, Manifest
from dyce_runtime.execution.contracts import Device
from dyce_runtime.execution.routing import Computing, run_step
from dyce_runtime.inputs.images import Inputs, count_of, rows_of
from dyce_runtime.program.liveness import choosing
from dyce_runtime.program.operations import Choose, Feed, Leave, Run

# The most samples that run at once.
_BATCH = 64

# How a configuration sets gates, by their id.
Gates: TypeAlias = "Mapping[str, tuple[float, ...] | int]"
NO_GATES: Gates = MappingProxyType({})


class HeadAnswer(NamedTuple):
    """The answer of a head: logits (N, classes) float32, score (N,) float32 and label (N,) int64. Owns its memory."""

    logits: npt.NDArray[np.float32]
    score: npt.NDArray[np.float32]
    label: npt.NDArray[np.int64]


def chunks(count: int, most: int) -> Iterator[slice]:
    """Yield slices that divide ``count`` samples into chunks of at most ``most``."""
    for start in range(0, count, most):
        yield slice(start, min(start + most, count))


def whole_program(manifest: Manifest, gates: Gates = NO_GATES) -> list[Computing | Feed]:
    """Return all operations of a bundle except exits, in order.

    Args:
        manifest: of the bundle.
        gates: as a configuration sets them; a gate that is not named chooses by the cut points of the program.
    """
    found: list[Computing | Feed] = []
    for operation in manifest.program:
        if isinstance(operation, Choose):
            found.append(choosing(operation, gates))
        elif not isinstance(operation, Leave):
            found.append(operation)
    return found


def trace(
    device: Device, manifest: Manifest, operations: Sequence[Computing | Feed], inputs: Inputs, tensors: Collection[str]
) -> dict[tuple[str, str], npt.NDArray[Any]]:
    """Run operations one after another on all samples, in chunks that the device can hold.

    Args:
        device: the open pieces.
        manifest: of the bundle.
        operations: what to run.
        inputs: images for every input that the operations feed.
        tensors: names of the tensors to return.

    Returns:
        (id of a piece, name of a tensor that it writes) to the values (N, ...).

    Raises:
        PieceError: a piece failed.
    """
    found: dict[tuple[str, str], list[npt.NDArray[Any]]] = {}
    for rows in chunks(count_of(inputs), min(_BATCH, device.max_rows)):
        part = rows_of(inputs, rows)
        with device.context(rows.stop - rows.start) as context:
            for operation in operations:
                if isinstance(operation, Feed):
                    context.set_input(operation.input, part[operation.input])
                    continue
                run_step(context, operation)
                if isinstance(operation, Run):
                    names = [name for name in manifest.piece(operation.piece).writes if name in tensors]
                    for name, array in zip(names, context.read(*names) if names else (), strict=True):
                        found.setdefault((operation.piece, name), []).append(array.copy())
    return {key: np.concatenate(parts) for key, parts in found.items()}


def head_answers(
    device: Device, manifest: Manifest, inputs: Inputs, gates: Gates = NO_GATES
) -> dict[tuple[str, str], HeadAnswer]:
    """Return (exit id, head type) to the answers of every head for all samples. Raises PieceError if a piece failed."""
    found = trace(device, manifest, whole_program(manifest, gates), inputs, ANSWER)
    return {
        (exit.id, head.type): HeadAnswer(*(found[head.piece, name] for name in ANSWER))
        for exit in manifest.exits
        for head in exit.heads
    }
