"""What savers and the exits of a base see of pictures: what an exit sequence network reads, run through the pieces."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from dyce_export.graph import onnx_graphs
from dyce_runtime.execution.contracts import Lane
from dyce_runtime.execution.session import Session
from dyce_runtime.execution.walk import answer, walk
from dyce_runtime.inputs.decoding import Picture
from dyce_runtime.inputs.images import Inputs, all_of, count_of


class Seen:
    """Runs a bundle and returns what the network reads, as a backbone whose features are kept.

    Attributes:
        exits: ids of the exits of the base, the final one left out.
        axes: of every tensor there, those that are averaged.
    """

    def __init__(self, session: Session) -> None:
        self._session, manifest = session, session.manifest
        self.exits = manifest.base.exits[:-1]
        heads = [manifest.piece(manifest.exit(id).heads[0].piece) for id in self.exits]
        self.axes = [onnx_graphs.pooled_axes(ir.load(session.bundle.file(head.file))) for head in heads]

    def prepare(self, pictures: Sequence[Picture]) -> Inputs:
        """What a session takes, of every network."""
        return all_of(self._session.inputs(self._session.preprocess(pictures)))  # type: ignore[return-value]

    def __call__(self, inputs: Inputs) -> tuple[Tensor, list[Tensor]]:
        """Logits of the base; the saver's features, those at every exit, averaged, and the saver's logits."""
        pooled: dict[str, NDArray[np.float32]] = {}
        manifest = self._session.manifest
        saver = manifest.savers[-1].id
        with self._session.device.lane(count_of(inputs)) as lane:
            for exit, head in walk(manifest, lane, inputs):
                if exit.id in self.exits and exit.id not in pooled:
                    pooled[exit.id] = self.pooled(exit.id, lane)
                elif exit.id == saver:
                    features, logits = (array.copy() for array in lane.left().values())
                elif exit is manifest.exits[-1]:
                    base = answer(manifest, lane, head)[0]
        return torch.from_numpy(base), [*map(torch.from_numpy, (features, *pooled.values(), logits))]

    def pooled(self, exit: str, lane: Lane) -> NDArray[np.float32]:
        """(N, features) of what is live at an exit."""
        axes = self.axes[self.exits.index(exit)]
        parts = [array.mean(axis=tuple(own)) if own else array for array, own in zip(lane.live(), axes, strict=True)]
        return np.concatenate(parts, axis=1)
