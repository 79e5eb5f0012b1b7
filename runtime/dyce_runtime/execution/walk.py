"""Through the whole program of a bundle, whatever a configuration would run: to record, to measure, to compare."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from dyce_runtime.bundle.manifest import Exit, Head, Manifest
from dyce_runtime.bundle.program import Feed, Leave
from dyce_runtime.execution.contracts import Lane
from dyce_runtime.inputs.images import Inputs


def walk(manifest: Manifest, lane: Lane, inputs: Inputs) -> Iterator[tuple[Exit, Head]]:
    """Run every segment of all networks; yields each head when what it reads is there.

    :func:`answer` runs the head.

    Args:
        inputs: of every network.
    """
    roles = {piece.id: piece.role for piece in manifest.pieces}
    for operation in manifest.program:
        if isinstance(operation, Feed):
            lane.put(inputs[operation.input], operation.input)
        elif isinstance(operation, Leave):
            exit = manifest.exit(operation.exit)
            yield exit, exit.head(operation.head)
        elif roles[operation.piece] != "head":
            lane.run(operation.piece)


def answer(
    manifest: Manifest, lane: Lane, head: Head
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Logits (N, classes), confidences (N,) and labels (N,) of a head that :func:`walk` has just yielded, copied."""
    own = manifest.piece(head.piece).role == "head"
    confidence = lane.decide(head.piece if own else None).copy()
    logits, label = lane.answers()
    return logits.copy(), confidence, label.copy()
