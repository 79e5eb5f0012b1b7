"""Calibrate a cut model on data: train heads, fit temperatures, and record what every head predicts."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dyce_calibration.heads.features import Features, extract_features
from dyce_calibration.heads.resume import fingerprint, folder_for
from dyce_calibration.heads.temperature import fit_temperature, softmax
from dyce_calibration.heads.training import Recipe, TrainedHead, train_heads
from dyce_calibration.processes import ALONE, Processes
from dyce_calibration.records import Records
from dyce_calibration.search.costs import CostTable
from dyce_calibration.search.select import restrict_records
from dyce_calibration.splits import HOLD_OUT, VAL_SHARES, divide
from dyce_export.graph.backbone import Backbone
from dyce_export.graph.exit_points import ExitPoint
from dyce_export.progress import Progress
from dyce_runtime.bundle.manifest import FINAL, Preprocessing, Splits
from dyce_runtime.errors import DataError
from dyce_runtime.inputs.datasets import Dataset, require_classes
from dyce_runtime.inputs.preprocessing import preprocess

log = logging.getLogger("dyce_export")


@dataclass(frozen=True)
class Calibration:
    """Trained heads, their records, and how the data was divided.

    Attributes:
        heads: the heads of each exit, in execution order.
        final_temperature: temperature of the model's own classifier.
        records: of the held-out samples.
        hashes: name of each split, including ``heads``, to the content hashes (n,) uint64 of its samples.
    """

    heads: list[list[TrainedHead]]
    final_temperature: float
    records: Records
    splits: Splits
    hashes: dict[str, NDArray[np.uint64]]

    def restricted(self, kept: set[tuple[str, str]]) -> Calibration:
        """Return a copy with only these heads (exit, type); exits without any are left out."""
        exits = list(dict.fromkeys(exit for exit, _ in self.records.heads))
        heads = [
            [head for head in of_exit if (exit, head.type) in kept]
            for exit, of_exit in zip(exits, self.heads, strict=True)
        ]
        return replace(
            self, heads=[of_exit for of_exit in heads if of_exit], records=restrict_records(self.records, kept)
        )


def macs_of_heads(points: Sequence[ExitPoint], heads: Sequence[Sequence[TrainedHead]], total_macs: int) -> CostTable:
    """Return the cost table of exit points and their heads in multiply-accumulates, before any piece is written.

    Args:
        heads: the heads of each exit point.
        total_macs: of the whole model.
    """
    backbone = {str(point.number): float(point.macs) for point in points}
    of_heads = {
        str(point.number): {head.type: float(head.macs) for head in of_exit}
        for point, of_exit in zip(points, heads, strict=True)
    }
    return CostTable("macs", {**backbone, FINAL: float(total_macs)}, of_heads, float(total_macs))


def calibrate(
    backbone: Backbone,
    data: Dataset,
    val: Dataset | None,
    preprocessing: Preprocessing,
    folder: Path,
    types: Sequence[str],
    recipe: Recipe,
    *,
    seed: int,
    progress: Progress,
    processes: Processes = ALONE,
) -> Calibration:
    """Train the heads on ``data``, if there are exits, fit temperatures and record every head on ``val``.

    Args:
        val: samples that the model has not seen; None holds out a part of ``data``, with a warning.
        folder: folder of this process for features and half-trained heads, with which an interrupted run resumes.
        types: types of the heads at every exit.
        seed: of the splits, of head initialisation and of training.
        processes: the processes among which the samples are divided; all return the same result.

    Raises:
        DataError: there are too few samples for the splits, or only one class.
        DestinationError: there is not enough space for the features.
    """
    if data.labels is not None:
        require_classes(data)
    unseen = val is not None
    if val is None:
        data, val = _hold_out(data, seed)
    for part in (data, val):
        _warn_about_conflicts(part)
    model = fingerprint([seed, processes.count, preprocessing, *content_of(backbone)])

    def own_folder(name: str, *made_from: object) -> Path:
        return folder_for(folder / name, fingerprint([model, *made_from]))

    def features(part: Dataset, name: str) -> Features:
        return extract_features(
            backbone,
            part,
            lambda pictures: torch.from_numpy(preprocess(pictures, preprocessing)),
            own_folder(name, part.hashes, part.labels),
            seed=seed,
            progress=lambda batches: progress.track(batches, f"features of {part.source}"),
            processes=processes,
        )

    with progress.stage("features"):
        fit, held_out = features(data, "data") if backbone.points else None, features(val, "val")
    with progress.stage("heads"):
        heads = (
            []
            if fit is None
            else train_heads(
                fit,
                types,
                recipe,
                seed=seed,
                progress=lambda epochs: progress.track(epochs, "training heads"),
                checkpoint=own_folder("heads", data.hashes, data.labels, types, recipe) / "state",
                processes=processes,
            )
        )
        heads, final_temperature, records = _record(backbone, heads, held_out, seed, processes)
    members = {"heads": np.empty(0, np.uint64) if fit is None else processes.gather(fit.hashes)}
    members |= {name: records.hashes[records.split == name] for name in VAL_SHARES}
    _warn_about_overlap(records, members["heads"])
    counts = {name: len(of_split) for name, of_split in members.items()}
    splits = Splits(seed=seed, samples=counts, labels=held_out.label_source, unseen=unseen)  # type: ignore[arg-type]
    return Calibration(heads, final_temperature, records, splits, members)


def check_amount(data: Dataset | None, val: Dataset | None, seed: int) -> None:
    """Raise DataError if there are too few images to choose configurations on.

    Called before training, so that it does not fail after hours.
    """
    if data is None:
        return
    held_out = data.take(_parts_of(data, seed)["val"]) if val is None else val
    searched = len(divide(held_out.hashes, VAL_SHARES, seed)["search"])
    if held_out.labels is None:
        return
    classes = int(held_out.labels.max()) + 1
    if searched < classes:
        share = VAL_SHARES["search"] * (HOLD_OUT if val is None else 1.0)
        raise DataError(
            f"{(data if val is None else val).source} leaves {searched} pictures to choose configurations on, for "
            f"{classes} classes; expected at least one for each",
            hint=f"{share:.0%} of {'--data' if val is None else '--val'} is used to choose. Give more pictures.",
        )


def content_of(backbone: Backbone) -> Iterator[object]:
    """Yield everything of a model that its features depend on: the generated code, the parameters and the buffers."""
    yield backbone.module.code
    for tensor in (*backbone.module.parameters(), *backbone.module.buffers()):
        yield tensor.detach().reshape(-1).view(torch.uint8).numpy()


def _hold_out(data: Dataset, seed: int) -> tuple[Dataset, Dataset]:
    log.warning(
        "no --val was given: %d %% of --data are held out. If the model was trained on them, its accuracy there is "
        "flattering and the configurations will lose more than they say.",
        round(100 * HOLD_OUT),
    )
    parts = _parts_of(data, seed)
    return data.take(parts["fit"]), data.take(parts["val"])


def _parts_of(data: Dataset, seed: int) -> dict[str, NDArray[np.int64]]:
    return divide(data.hashes, {"fit": 1 - HOLD_OUT, "val": HOLD_OUT}, seed + 1)


def _record(
    backbone: Backbone, heads: Sequence[Sequence[TrainedHead]], features: Features, seed: int, processes: Processes
) -> tuple[list[list[TrainedHead]], float, Records]:
    """Fit all temperatures on the split ``temperature``, and record every head on all held-out samples."""
    labels, hashes = processes.gather(features.labels), processes.gather(features.hashes)
    parts = divide(hashes, VAL_SHARES, seed)
    rows = parts["temperature"]
    calibrated: list[list[TrainedHead]] = []
    names, predictions, scores = [], [], []

    def record(own: NDArray[np.float32]) -> float:
        logits = processes.gather(own)
        temperature = fit_temperature(logits[rows], labels[rows])
        predictions.append(logits.argmax(axis=1))
        scores.append(softmax(logits, temperature).max(axis=1))
        return temperature

    for point, of_exit, store in zip(backbone.points, heads, features.exits, strict=True):
        pooled = torch.from_numpy(np.asarray(store))
        names += [(str(point.number), head.type) for head in of_exit]
        calibrated.append([replace(head, temperature=record(head.logits(pooled).numpy())) for head in of_exit])
    final_temperature = record(np.asarray(features.logits))
    split = np.empty(len(labels), dtype="<U16")
    for name, members in parts.items():
        split[members] = name
    records = Records.of_single_label(
        tuple(names),
        np.stack(predictions, axis=1).astype(np.int64),
        np.stack(scores, axis=1),
        labels,
        hashes,
        split,
    )
    return calibrated, final_temperature, records


def _warn_about_conflicts(data: Dataset) -> None:
    if data.labels is None:
        return
    hashes = data.hashes
    contradicted = len(np.unique(np.stack([hashes.astype(np.int64), data.labels]), axis=1)[0]) - len(np.unique(hashes))
    if contradicted:
        log.warning("%s: %d pictures occur again with another label", data.source, contradicted)


def _warn_about_overlap(records: Records, fitted_on: NDArray[np.uint64]) -> None:
    shared = int(np.isin(records.hashes, fitted_on).sum())
    if shared:
        log.warning(
            "%d of the %d validation pictures are also in --data: the heads were trained on them", shared, len(records)
        )
