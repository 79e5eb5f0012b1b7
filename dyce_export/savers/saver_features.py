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
from dyce_runtime.execution.walk import walk
from dyce_runtime.inputs.decoding import Picture
from dyce_runtime.inputs.images import Inputs, all_of, count_of


class Seen:
    """Runs a bundle and returns what the network reads, as a backbone whose features are kept.

    Attributes:
        exits: indices of the exits of the base.
        axes: of every tensor there, those that are averaged.
    """

    def __init__(self, session: Session) -> None:
        self._session, manifest = session, session.manifest
        self.saver = manifest.savers[-1]
        self.exits = range(manifest.base.first, manifest.base.last)
        heads = [manifest.piece(manifest.exits[index].heads[0].piece) for index in self.exits]
        self.axes = [onnx_graphs.pooled_axes(ir.load(session.bundle.file(head.file))) for head in heads]

    def prepare(self, pictures: Sequence[Picture]) -> Inputs:
        """What a session takes, of every network."""
        return all_of(self._session.inputs(self._session.preprocess(pictures)))  # type: ignore[return-value]

    def __call__(self, inputs: Inputs) -> tuple[Tensor, list[Tensor]]:
        """Logits of the base; the saver's features, those at every exit, averaged, and the saver's logits."""
        pooled: list[NDArray[np.float32]] = []
        with self._session.device.lane(count_of(inputs)) as lane:
            for index, exit in walk(self._session.manifest, lane, inputs):
                if index in self.exits:
                    pooled.append(self.pooled(index, lane))
                elif exit.id == self.saver.id:
                    features, logits = (array.copy() for array in lane.left().values())
            lane.decide()
            base = lane.answers()[0].copy()
        return torch.from_numpy(base), [*map(torch.from_numpy, (features, *pooled, logits))]

    def pooled(self, index: int, lane: Lane) -> NDArray[np.float32]:
        """(N, features) of what is live at an exit."""
        axes = self.axes[index - self.exits.start]
        parts = [array.mean(axis=tuple(own)) if own else array for array, own in zip(lane.live(), axes, strict=True)]
        return np.concatenate(parts, axis=1)
