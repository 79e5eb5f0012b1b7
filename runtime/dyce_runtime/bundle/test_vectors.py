"""Test vectors: inputs of a bundle with what they must give, so that a device, or another engine, checks itself."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dyce_runtime.bundle.arrays import read_arrays
from dyce_runtime.bundle.reader import TEST_VECTORS, Bundle
from dyce_runtime.errors import BundleError
from dyce_runtime.execution.session import Session
from dyce_runtime.execution.trace import head_answers

Floats = npt.NDArray[np.float32]


class Vectors(NamedTuple):
    """What ``testvectors/vectors.npz`` holds.

    Attributes:
        inputs: of every network, (N, C, H, W) float32 by the name of the input.
        logits: (N, classes) float32, of the full model.
        confidences: (N, exits) float32, of the first head of every exit.
        probe: (exits,) float32, thresholds between them.
    """

    inputs: dict[str, Floats]
    logits: Floats
    confidences: Floats
    probe: Floats


def read_vectors(bundle: Bundle) -> Vectors:
    """Those of a bundle. Raises BundleError if they are missing, damaged or of another model."""
    path, manifest = bundle.file(TEST_VECTORS), bundle.manifest
    shapes: dict[str, tuple[int | str, ...]] = {
        _key(name, manifest.input.name): manifest.tensor(name).shape[1:] for name in manifest.inputs
    }
    exits = len(manifest.exits) - 1
    shapes |= {"logits": (manifest.classes,), "confidences": (exits,)}
    file = read_arrays(path, "test vectors")
    count = len(np.atleast_1d(file.get("images", ())))
    for name, shape in {**{name: (count, *shape) for name, shape in shapes.items()}, "probe": (exits,)}.items():
        found = file.get(name)
        if found is None or found.dtype != np.float32 or found.shape != shape or not count:
            told = "missing" if found is None else f"{found.dtype} of shape {found.shape}"
            raise BundleError(f"{path}: {name} is {told}; expected float32 of shape {shape}, of at least one sample")
    inputs = {name: file[_key(name, manifest.input.name)] for name in manifest.inputs}
    return Vectors(inputs, file["logits"], file["confidences"], file["probe"])


def write_vectors(vectors: Vectors, bundle: Bundle) -> None:
    """Store them in the bundle."""
    path, base = bundle.file(TEST_VECTORS), bundle.manifest.input.name
    path.parent.mkdir(exist_ok=True)
    inputs = {_key(name, base): images for name, images in vectors.inputs.items()}
    others = {"logits": vectors.logits, "confidences": vectors.confidences, "probe": vectors.probe}
    np.savez_compressed(path, **inputs, **others)  # type: ignore[arg-type]


def _key(name: str, base: str) -> str:
    return "images" if name == base else f"images_{name}"


def answered(vectors: Vectors, session: Session) -> Vectors:
    """The same with what a session says, through segments and heads. Raises PieceError."""
    manifest = session.manifest
    said = head_answers(session.device, manifest, vectors.inputs)
    *before, last = (said[exit.id, exit.heads[0].type] for exit in manifest.exits)
    none = np.empty((len(vectors.logits), 0), np.float32)
    scores = np.stack([one.score for one in before], axis=1) if before else none
    return vectors._replace(logits=last.logits, confidences=scores)


def relative_error(expected: Floats, found: Floats, scale_of: Floats) -> float:
    """max |expected - found| over what depends on the input in ``scale_of``.

    A logit of -inf, by which a model excludes a class, has to be -inf in both. Infinite if anything else is not finite.
    """
    excluded = np.isneginf(expected)
    if expected.shape != found.shape or not np.array_equal(excluded, np.isneginf(found)):
        return float("inf")
    expected, found = expected[~excluded], found[~excluded]
    if not (np.isfinite(expected).all() and np.isfinite(found).all()):
        return float("inf")
    error = np.abs(expected.astype(np.float64) - found).max(initial=0.0)
    scale = spread(scale_of)
    return float(error / scale) if scale > 0 else (0.0 if error == 0 else float("inf"))


def spread(values: Floats) -> float:
    """How far values (N, ...) are from their mean over the samples at most; those of -inf are left out."""
    known = np.where(np.isneginf(values), np.float32(0), values)
    return float(np.abs(known - known.mean(axis=0, dtype=np.float64)).max())
