"""Test vectors: inputs of a bundle with what they must give, so that a device, or another engine, checks itself."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dyce_runtime.bundle import TEST_VECTORS, Bundle
from dyce_runtime.session import Session

Floats = npt.NDArray[np.float32]


class Vectors(NamedTuple):
    """What ``testvectors/vectors.npz`` holds.

    Attributes:
        images: (N, C, H, W) float32.
        logits: (N, classes) float32, of the full model.
        confidences: (N, exits) float32, of the first head of every exit.
        probe: (exits,) float32, thresholds between them.
    """

    images: Floats
    logits: Floats
    confidences: Floats
    probe: Floats


def read_vectors(bundle: Bundle) -> Vectors:
    """Those of a bundle."""
    with np.load(bundle.file(TEST_VECTORS)) as file:
        return Vectors(*(file[name] for name in Vectors._fields))


def write_vectors(vectors: Vectors, folder: Path) -> None:
    """Store them in the bundle in ``folder``."""
    path = folder / TEST_VECTORS
    path.parent.mkdir(exist_ok=True)
    np.savez_compressed(path, **vectors._asdict())


def answered(vectors: Vectors, session: Session) -> Vectors:
    """The same with what a session says, through segments and heads. Raises PieceError."""
    confidences = []
    with session.device.lane(len(vectors.images)) as lane:
        lane.put(vectors.images)
        for index, exit in enumerate(session.manifest.exits):
            lane.run(f"segment_{index:02d}")
            confidences.append(lane.decide(exit.heads[0].piece if exit.heads else None).copy())
        logits = lane.answers()[0].copy()
    return vectors._replace(logits=logits, confidences=np.stack(confidences[:-1], axis=1))


def relative_error(expected: Floats, found: Floats, scale_of: Floats) -> float:
    """max |expected - found| over what depends on the input in ``scale_of``; infinite if anything is not finite."""
    if expected.shape != found.shape or not np.isfinite(found).all():
        return float("inf")
    error = np.abs(expected.astype(np.float64) - found).max()
    scale = np.abs(scale_of - scale_of.mean(axis=0, dtype=np.float64)).max()
    return float(error / scale) if scale > 0 else (0.0 if error == 0 else float("inf"))
