"""What savers and the exits of a base see of pictures: what an exit sequence network reads, run through the pieces."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from dyce_export.graph import onnx_graphs
from dyce_runtime.bundle.manifest import ANSWER, LOGITS
from dyce_runtime.execution.session import Session
from dyce_runtime.execution.trace import trace, whole_program
from dyce_runtime.inputs.decoding import Picture
from dyce_runtime.inputs.images import Inputs, all_of


class Seen:
    """Runs a bundle and returns what the network reads, as a backbone whose features are kept.

    Attributes:
        exits: ids of the exits of the base, the final one left out.
        axes: of every tensor there, those that are averaged.
    """

    def __init__(self, session: Session) -> None:
        self._session, manifest = session, session.manifest
        self.exits = manifest.base.exits[:-1]
        self._heads = [manifest.piece(manifest.exit(id).heads[0].piece) for id in self.exits]
        self.axes = [onnx_graphs.pooled_axes(ir.load(session.bundle.file(head.file))) for head in self._heads]

    def prepare(self, pictures: Sequence[Picture]) -> Inputs:
        """What a session takes, of every network."""
        return all_of(self._session.inputs(self._session.preprocess(pictures)))  # type: ignore[return-value]

    def __call__(self, inputs: Inputs) -> tuple[Tensor, list[Tensor]]:
        """Logits of the base; the saver's features, those at every exit, averaged, and the saver's logits."""
        manifest = self._session.manifest
        ends = [manifest.exit(network.id).heads[0].piece for network in (manifest.savers[-1], manifest.base)]
        left = manifest.piece(ends[0]).writes[len(ANSWER) :]
        wanted = {LOGITS, *left, *(name for head in self._heads for name in head.reads)}
        found = trace(self._session.device, manifest, whole_program(manifest), inputs, wanted)
        values = {name: array for (_, name), array in found.items()}
        features, logits = (values[name] for name in left)
        pooled = [
            np.concatenate([_averaged(values[name], own) for name, own in zip(head.reads, axes, strict=True)], axis=1)
            for head, axes in zip(self._heads, self.axes, strict=True)
        ]
        return torch.from_numpy(found[ends[1], LOGITS]), [*map(torch.from_numpy, (features, *pooled, logits))]


def _averaged(array: NDArray[np.float32], axes: Sequence[int]) -> NDArray[np.float32]:
    return array.mean(axis=tuple(axes)) if axes else array
