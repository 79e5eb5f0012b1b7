"""Compute the inputs of an exit sequence network, features of a saver and of exits, by running a bundle's pieces."""

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
    """Runs a bundle like a backbone whose features are cached for training.

    Args:
        session: an open session of a bundle whose last saver exposes its features. The caller closes it.

    Attributes:
        exits: ids of the exits of the base, without the final one.
        axes: for every tensor at every exit, the axes that are averaged.
    """

    def __init__(self, session: Session) -> None:
        self._session, manifest = session, session.manifest
        self.exits = manifest.base.exits[:-1]
        self._heads = [manifest.piece(manifest.exit(id).heads[0].piece) for id in self.exits]
        self.axes = [onnx_graphs.pooled_axes(ir.load(session.bundle.file(head.file))) for head in self._heads]

    def prepare(self, pictures: Sequence[Picture]) -> Inputs:
        """Preprocess images into the inputs of every network."""
        return all_of(self._session.inputs(self._session.preprocess(pictures)))  # type: ignore[return-value]

    def __call__(self, inputs: Inputs) -> tuple[Tensor, list[Tensor]]:
        """Return the logits (N, classes) of the base, and the inputs of the network.

        The inputs are the saver's features (N, features), the averaged features at every exit, likewise, and the
        saver's logits (N, classes), all float32.
        """
        manifest = self._session.manifest
        ends = [manifest.exit(network.id).heads[0].piece for network in (manifest.savers[-1], manifest.base)]
        exposed = manifest.piece(ends[0]).writes[len(ANSWER) :]
        wanted = {LOGITS, *exposed, *(name for head in self._heads for name in head.reads)}
        found = trace(self._session.device, manifest, whole_program(manifest), inputs, wanted)
        values = {name: array for (_, name), array in found.items()}
        features, logits = (values[name] for name in exposed)
        pooled = [
            np.concatenate([_averaged(values[name], own) for name, own in zip(head.reads, axes, strict=True)], axis=1)
            for head, axes in zip(self._heads, self.axes, strict=True)
        ]
        return torch.from_numpy(found[ends[1], LOGITS]), [*map(torch.from_numpy, (features, *pooled, logits))]


def _averaged(array: NDArray[np.float32], axes: Sequence[int]) -> NDArray[np.float32]:
    return array.mean(axis=tuple(axes)) if axes else array
