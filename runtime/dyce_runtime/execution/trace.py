"""Through the whole program, whatever a configuration would run: to record, to measure, to compare."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dyce_runtime.bundle.manifest import ANSWER, Manifest
from dyce_runtime.execution.contracts import Device
from dyce_runtime.execution.routing import Computing, run_step
from dyce_runtime.inputs.images import Inputs, count_of, rows_of
from dyce_runtime.program.liveness import Choosing
from dyce_runtime.program.operations import Choose, Feed, Leave, Run

# Samples that run at once where the device takes more.
_BATCH = 64


class HeadAnswer(NamedTuple):
    """What a head answers: logits (N, classes), score (N,) and label (N,). It owns its memory."""

    logits: npt.NDArray[np.float32]
    score: npt.NDArray[np.float32]
    label: npt.NDArray[np.int64]


def chunks(count: int, most: int) -> Iterator[slice]:
    """The samples of a call, in parts of at most ``most``."""
    for start in range(0, count, most):
        yield slice(start, min(start + most, count))


def whole_program(manifest: Manifest) -> list[Computing | Feed]:
    """Everything that a bundle can run, in order; samples take the ways that its gates were made for."""
    found: list[Computing | Feed] = []
    for operation in manifest.program:
        if isinstance(operation, Choose):
            found.append(Choosing(operation.gate, operation.by, operation.cases, operation.cut_points))
        elif not isinstance(operation, Leave):
            found.append(operation)
    return found


def trace(
    device: Device, manifest: Manifest, operations: Sequence[Computing | Feed], inputs: Inputs, tensors: Collection[str]
) -> dict[tuple[str, str], npt.NDArray[Any]]:
    """Run operations one after another on all samples, in as many parts as the device needs.

    Args:
        inputs: of everything that the operations feed.
        tensors: names of those to return.

    Returns:
        by the id of a piece and the name of a tensor that it writes, what it wrote, (N, ...).

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


def head_answers(device: Device, manifest: Manifest, inputs: Inputs) -> dict[tuple[str, str], HeadAnswer]:
    """What every head answers, by the id of its exit and its type. Raises PieceError."""
    found = trace(device, manifest, whole_program(manifest), inputs, ANSWER)
    return {
        (exit.id, head.type): HeadAnswer(*(found[head.piece, name] for name in ANSWER))
        for exit in manifest.exits
        for head in exit.heads
    }
