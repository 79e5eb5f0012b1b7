"""Test vectors: inputs of a bundle with their expected results, to check an engine on a device."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dyce_runtime.bundle.arrays import read_arrays
from dyce_runtime.bundle.manifest import Manifest
from dyce_runtime.bundle.reader import TEST_VECTORS, Bundle
from dyce_runtime.errors import BundleError
from dyce_runtime.execution.session import Session
from dyce_runtime.execution.trace import head_answers, trace, whole_program
from dyce_runtime.program.operations import Feed, Run
from dyce_runtime.program.structure import ends_of, segments_of

Floats = npt.NDArray[np.float32]


class Vectors(NamedTuple):
    """The content of ``testvectors/vectors.npz``.

    Attributes:
        inputs: name of each input to images (N, C, H, W) float32.
        logits: (N, classes) float32, of the full model.
        scores: (exit id, head type) to (N,) float32.
        probe: (exits,) float32, for every exit but the final one a threshold between the scores of its first head.
    """

    inputs: dict[str, Floats]
    logits: Floats
    scores: dict[tuple[str, str], Floats]
    probe: Floats

    def first(self, manifest: Manifest) -> Floats:
        """Return the scores (N, exits) float32 of the first head of every exit but the final one."""
        found = [self.scores[exit.id, exit.heads[0].type] for exit in manifest.exits[:-1]]
        return np.stack(found, axis=1) if found else np.empty((len(self.logits), 0), np.float32)


def read_vectors(bundle: Bundle) -> Vectors:
    """Read the test vectors of a bundle. Raises BundleError if they are missing, damaged or of another model."""
    path, manifest = bundle.file(TEST_VECTORS), bundle.manifest
    shapes: dict[str, tuple[int | str, ...]] = {
        _key(name, manifest.input.name): manifest.tensor(name).shape[1:] for name in manifest.inputs
    }
    exits, heads = len(manifest.exits) - 1, _heads(manifest)
    shapes |= {"logits": (manifest.classes,), "scores": (len(heads),)}
    file = read_arrays(path, "test vectors")
    count = len(np.atleast_1d(file.get("images", ())))
    for name, shape in {**{name: (count, *shape) for name, shape in shapes.items()}, "probe": (exits,)}.items():
        found = file.get(name)
        if found is None or found.dtype != np.float32 or found.shape != shape or not count:
            told = "missing" if found is None else f"{found.dtype} of shape {found.shape}"
            raise BundleError(f"{path}: {name} is {told}; expected float32 of shape {shape}, of at least one sample")
    inputs = {name: file[_key(name, manifest.input.name)] for name in manifest.inputs}
    scores = {head: file["scores"][:, column] for column, head in enumerate(heads)}
    return Vectors(inputs, file["logits"], scores, file["probe"])


def write_vectors(vectors: Vectors, bundle: Bundle) -> None:
    """Store test vectors in the bundle; they must have scores for all of its heads."""
    path, base = bundle.file(TEST_VECTORS), bundle.manifest.input.name
    path.parent.mkdir(exist_ok=True)
    inputs = {_key(name, base): images for name, images in vectors.inputs.items()}
    scores = np.stack([vectors.scores[head] for head in _heads(bundle.manifest)], axis=1)
    others = {"logits": vectors.logits, "scores": scores, "probe": vectors.probe}
    np.savez_compressed(path, **inputs, **others)  # type: ignore[arg-type]


def _heads(manifest: Manifest) -> list[tuple[str, str]]:
    """Return the columns of the stored scores: all heads, exit by exit, the final one last."""
    return [(exit.id, head.type) for exit in manifest.exits for head in exit.heads]


def _key(name: str, base: str) -> str:
    return "images" if name == base else f"images_{name}"


def answered(vectors: Vectors, session: Session) -> Vectors:
    """Return the vectors with the logits and scores that a session computes, by segments and heads.

    Raises:
        PieceError: a piece failed.
    """
    said = head_answers(session.device, session.manifest, vectors.inputs)
    last = session.manifest.exits[-1]
    scores = {head: answer.score for head, answer in said.items()}
    return vectors._replace(logits=said[last.id, last.heads[0].type].logits, scores=scores)


def span_errors(vectors: Vectors, session: Session) -> dict[str, float]:
    """Compare every open span with the segments that it covers.

    Returns:
        id of the span to the largest :func:`relative_error` of its outputs.

    Raises:
        PieceError: a piece failed.
    """
    device, manifest = session.device, session.manifest
    spans = [span for span in manifest.spans if span.id in session.pieces]
    wanted = {name for span in spans for name in (span.writes[:1] if span.answers else span.writes)}
    chain = trace(device, manifest, whole_program(manifest), vectors.inputs, wanted) if spans else {}
    errors = {}
    for span in spans:
        network = next(net for net in manifest.networks if ends_of(manifest, span)[1] in net.exits)
        segments = [piece.id for piece in segments_of(manifest, network.id)]
        runs = [Run(id) for id in (*segments[: segments.index(span.covers[0])], span.id)]
        feeds = [Feed(input.tensor) for input in network.inputs]
        found = trace(device, manifest, [*feeds, *runs], vectors.inputs, wanted)
        pairs = [(chain[span.covers[-1], name], found[span.id, name]) for name in span.writes if name in wanted]
        errors[span.id] = max(relative_error(expected, own, expected) for expected, own in pairs)
    return errors


def relative_error(expected: Floats, found: Floats, scale_of: Floats) -> float:
    """Return max |expected - found| / :func:`spread` of ``scale_of``.

    A logit of -inf, by which a model excludes a class, has to be -inf in both arrays. The error is infinite if any
    other value is not finite, or the shapes differ.
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
    """Return the largest distance of values (N, ...) from their mean over the samples; -inf counts as 0."""
    known = np.where(np.isneginf(values), np.float32(0), values)
    return float(np.abs(known - known.mean(axis=0, dtype=np.float64)).max())
