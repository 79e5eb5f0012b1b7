"""Add an exit sequence network to a base with a saver: train it on features that the pieces compute, and write it.

See :mod:`dyce_calibration.heads.sequence` for the network. Its step at each exit of the base is a further head there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from dyce_calibration.heads.features import Features, extract_features
from dyce_calibration.heads.resume import fingerprint, folder_for
from dyce_calibration.heads.sequence import ExitSequence, train_sequence
from dyce_calibration.heads.temperature import fit_temperature, softmax
from dyce_calibration.heads.training import Recipe
from dyce_calibration.recorder import recorded_pictures
from dyce_calibration.records import Records
from dyce_export.graph import onnx_graphs
from dyce_export.graph.pieces import names_of
from dyce_export.graph.programs import requires, with_head
from dyce_export.progress import Progress
from dyce_export.savers.compose import Joined
from dyce_export.savers.saver_features import Seen
from dyce_export.savers.sequence_graphs import left_spec, sequence_step, step_inputs
from dyce_export.writing.rewrite import merge_verification
from dyce_runtime.bundle.arrays import read_splits
from dyce_runtime.bundle.manifest import ANSWER, Head, Manifest, Piece
from dyce_runtime.bundle.reader import Bundle
from dyce_runtime.bundle.test_vectors import Vectors, relative_error
from dyce_runtime.errors import DataError, UsageError
from dyce_runtime.execution.contracts import TargetSpec
from dyce_runtime.execution.session import Session
from dyce_runtime.execution.trace import head_answers
from dyce_runtime.inputs.datasets import Dataset
from dyce_runtime.targets import registry

#: One transformer layer over tokens of width 64.
DEFAULT_TYPE = "esn1x64"
# Samples per batch at inference.
_ROWS = 4096


def check_sequence(*, savers: bool, exits: bool, data: bool) -> None:
    """Raise UsageError unless there are savers, exits of the base and data, which the network needs."""
    for there, what, hint in (
        (savers, "savers", "It reads the features of a saver: --saver."),
        (exits, "exits", "It decides at the exits of the base: --exits."),
        (data, "data", "It is trained on pictures: --data."),
    ):
        if not there:
            raise UsageError(f"an exit sequence network was asked for without {what}", hint=hint)


@dataclass(frozen=True)
class Training:
    """How an exit sequence network is trained.

    Attributes:
        type: layers and width, such as ``esn1x64``; see :func:`dyce_calibration.heads.sequence.parse_sequence`.
        data: contains the images that the heads of the base were trained on.
        val: contains the images of the base's records.
        work: folder for features and half-trained networks, with which an interrupted run resumes.
    """

    type: str
    recipe: Recipe
    seed: int
    data: Dataset
    val: Dataset
    work: Path


def add_sequence(joined: Joined, parts: Sequence[Bundle], how: Training, progress: Progress) -> Joined:
    """Train the network, and write a head with its step at every exit of the base.

    Args:
        joined: the bundle that is being written. Its last saver exposes its features (see
            :func:`dyce_export.savers.exposed_features.expose_features`), and all its heads were recorded.
        parts: the bundles that it is composed of, the base last.

    Returns:
        the bundle with a further head at every exit of the base, and with its records.

    Raises:
        DataError: the images are not those that the base was exported with.
        VerificationError: a written step does not compute what torch computes.
    """
    made, records = joined.bundle, joined.records
    assert records is not None
    fitted_on, recorded_on = _fitted(parts[-1], how.data), recorded_pictures(how.val, records)
    key = [how.type, how.recipe, how.seed, *(part.fingerprint for part in parts)]
    with Session(made, registry.reference().name, TargetSpec(), allow_untrained=True) as session:
        seen = Seen(session)

        def features(part: Dataset, name: str) -> Features:
            return extract_features(
                seen,
                part,
                seen.prepare,
                folder_for(how.work / name, fingerprint([*key, part.hashes])),
                seed=how.seed,
                progress=lambda batches: progress.track(batches, f"what savers and exits see of {part.source}"),
            )

        fit, held_out = features(fitted_on, "fit"), features(recorded_on, "val")
        network = train_sequence(
            fit,
            how.type,
            how.recipe,
            seed=how.seed,
            progress=lambda epochs: progress.track(epochs, "training the exit sequence network"),
            checkpoint=folder_for(how.work / "network", fingerprint([*key, fitted_on.hashes])) / "state",
        )
    temperatures, records = _record(network, how.type, held_out, records, seen.exits)
    manifest = write_steps(made, network, how.type, temperatures, seen.axes)
    with_steps = Bundle(made.path, manifest, made.configurations)
    manifest = _checked(with_steps, network, how.type, joined.vectors)
    return replace(joined, bundle=Bundle(made.path, manifest, made.configurations), records=records)


def _fitted(base: Bundle, data: Dataset) -> Dataset:
    """Return the images that the heads of the base were trained on. Raises DataError if ``data`` has none of them."""
    known = np.isin(data.hashes, read_splits(base).get("heads", ()))
    if not known.any():
        raise DataError(
            f"no picture of {data.source} is one that the heads of {base.manifest.model.name} were fitted on",
            hint="Give the same --data as to the export of the base.",
        )
    return data.take(np.flatnonzero(known))


def _record(
    network: ExitSequence, type: str, seen: Features, records: Records, exits: Sequence[str]
) -> tuple[list[float], Records]:
    """Fit the temperature of every exit on the split ``temperature``, and add a column per exit to the records."""
    rows = {hash: row for row, hash in enumerate(seen.hashes.tolist())}
    order = [rows[hash] for hash in records.hashes.tolist()]
    fit = records.split == "temperature"
    temperatures, columns = [], {}
    for number, exit in enumerate(exits, start=1):
        logits = _logits(network, seen, number)[order]
        temperatures.append(fit_temperature(logits[fit], records.labels[fit]))
        columns[exit] = logits.argmax(axis=1), softmax(logits, temperatures[-1]).max(axis=1)
    return temperatures, _with_columns(records, type, columns)


def _logits(network: ExitSequence, seen: Features, number: int) -> NDArray[np.float32]:
    """Return the logits (N, classes) float32 of exit ``number``, counted from 1, in the order of the features."""
    starts = range(0, len(seen), _ROWS)
    with torch.inference_mode():
        parts = (network([torch.from_numpy(store[s : s + _ROWS]) for store in seen.exits])[number][0] for s in starts)
        return np.concatenate([part.numpy() for part in parts])


def _with_columns(
    records: Records, type: str, columns: Mapping[str, tuple[NDArray[np.int64], NDArray[np.float32]]]
) -> Records:
    """Return records with a further head after the others of each exit.

    Args:
        columns: exit id to predictions (N,) and scores (N,).
    """
    last = {exit: column for column, (exit, _) in enumerate(records.heads)}
    for exit in sorted(columns, key=lambda exit: -last[exit]):
        predictions, scores = columns[exit]
        records = records.insert(last[exit] + 1, ((exit, type),), predictions[:, None], scores[:, None])
    return records


def write_steps(
    made: Bundle, network: ExitSequence, type: str, temperatures: Sequence[float], axes: Sequence[list[list[int]]]
) -> Manifest:
    """Write the steps as pieces, and return the manifest in which they are the last heads of their exits.

    Args:
        made: a bundle whose last saver exposes its features.
        temperatures: one per exit of the base, without the final one.
        axes: for every tensor at every exit, the axes that are averaged.
    """
    manifest = made.manifest
    tensors = [*manifest.tensors]
    ends = manifest.exits[len(manifest.exits) - len(manifest.base.exits) - 1].heads[0].piece
    features, logits = manifest.specs(manifest.piece(ends).writes[len(ANSWER) :])
    for number, (temperature, own) in enumerate(zip(temperatures, axes, strict=True), start=1):
        exit = manifest.exit(manifest.base.exits[number - 1])
        seam = manifest.specs(manifest.piece(exit.heads[0].piece).reads)
        inputs = step_inputs(network, number, seam, (features, logits))
        graph = sequence_step(network, number, seam, own, (features, logits), temperature)
        id = f"exit_{exit.point:02d}_{type}"
        file = f"heads/{id}.onnx"
        onnx_graphs.save(graph, made.file(file), {"piece": id, "exit": exit.id})
        left = [left_spec(network, number)] if network.layers else []
        piece = Piece(
            id, "head", file, names_of(inputs), (*ANSWER, *(spec.name for spec in left)), network.macs(number)
        )
        head = Head(type, id, trained=True, temperature=temperature, pooled=exit.heads[0].pooled)
        exit = msgspec.structs.replace(exit, heads=(*exit.heads, head))
        tensors += left
        manifest = msgspec.structs.replace(
            manifest,
            exits=tuple(exit if one.id == exit.id else one for one in manifest.exits),
            pieces=(*manifest.pieces, piece),
            program=with_head(manifest.program, exit, type),
        )
    return msgspec.structs.replace(
        manifest, tensors=tuple(tensors), requires=requires(manifest.networks, tensors, manifest.program)
    )


def _checked(made: Bundle, network: ExitSequence, type: str, vectors: Vectors) -> Manifest:
    """Return the manifest with the errors of the steps against torch. Raises VerificationError if one is too large."""
    manifest = made.manifest
    with Session(made, registry.reference().name, TargetSpec(), allow_untrained=True) as session:
        seen = Seen(session)
        said = head_answers(session.device, manifest, vectors.inputs)
        found = {
            head.piece: said[exit.id, type].logits
            for exit in manifest.exits
            for head in exit.heads
            if head.type == type
        }
        with torch.inference_mode():
            expected = [logits.numpy() for (logits,) in network(seen(vectors.inputs)[1])[1:]]
    both = zip(found.items(), expected, strict=True)
    return merge_verification(
        manifest, {id: relative_error(torchs, ours, torchs) for (id, ours), torchs in both}, "torch"
    )
