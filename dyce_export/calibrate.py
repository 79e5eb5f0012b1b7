"""From data to trained heads and records: the calibration side of an export."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dyce_calibration.costs import CostTable
from dyce_calibration.features import Features, extract_features
from dyce_calibration.heads import Recipe, TrainedHead, train_heads
from dyce_calibration.records import Records
from dyce_calibration.select import restrict_records
from dyce_calibration.splits import HOLD_OUT, VAL_SHARES, divide
from dyce_calibration.temperature import fit_temperature, softmax
from dyce_export.backbone import Backbone
from dyce_export.exit_points import ExitPoint
from dyce_export.progress import Progress
from dyce_runtime.datasets import Dataset, require_classes
from dyce_runtime.manifest import FINAL, Preprocessing, Splits

log = logging.getLogger("dyce_export")


@dataclass(frozen=True)
class Calibration:
    """What data gave: heads exit by exit, the temperature of the final head, records and how the data was divided.

    ``hashes`` holds the content hashes of the samples of each split, ``heads`` among them.
    """

    heads: list[list[TrainedHead]]
    final_temperature: float
    records: Records
    splits: Splits
    hashes: dict[str, NDArray[np.uint64]]

    def restricted(self, kept: set[tuple[str, str]]) -> Calibration:
        """The same with some of the heads (exit, type); exits without any are left out."""
        exits = list(dict.fromkeys(exit for exit, _ in self.records.heads))
        heads = [
            [head for head in of_exit if (exit, head.type) in kept]
            for exit, of_exit in zip(exits, self.heads, strict=True)
        ]
        return replace(
            self, heads=[of_exit for of_exit in heads if of_exit], records=restrict_records(self.records, kept)
        )


def macs_of_heads(points: Sequence[ExitPoint], heads: Sequence[Sequence[TrainedHead]], total_macs: int) -> CostTable:
    """The cost table of exit points and their heads, before anything is written."""
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
) -> Calibration:
    """Train the heads on ``data``, fit temperatures and record every head on ``val``.

    Args:
        val: samples that the base model has never seen; None cuts them from ``data``, with a warning.
        folder: where the features are kept meanwhile.
        types: of the heads at every exit.

    Raises:
        DataError: too few samples for the splits, or a single class.
        DestinationError: not enough space for the features.
    """
    if data.labels is not None:
        require_classes(data)
    with progress.stage("features"):
        fit = _features(backbone, data, preprocessing, folder / "data", seed, progress)
        if val is None:
            fit, held_out = _hold_out(fit, seed)
        else:
            held_out = _features(backbone, val, preprocessing, folder / "val", seed, progress)
    parts = divide(held_out.hashes, VAL_SHARES, seed)
    _warn_about_overlap(fit, held_out)
    with progress.stage("heads"):
        heads = train_heads(
            fit, types, recipe, seed=seed, progress=lambda epochs: progress.track(epochs, "training heads")
        )
        heads, final_temperature, records = _record(backbone, heads, held_out, parts)
    _warn_about_chance(records)
    hashes = {"heads": fit.hashes, **{name: held_out.hashes[rows] for name, rows in parts.items()}}
    counts = {name: len(members) for name, members in hashes.items()}
    splits = Splits(seed=seed, samples=counts, labels=held_out.label_source, unseen=val is not None)  # type: ignore[arg-type]
    return Calibration(heads, final_temperature, records, splits, hashes)


def _features(
    backbone: Backbone, data: Dataset, preprocessing: Preprocessing, folder: Path, seed: int, progress: Progress
) -> Features:
    return extract_features(
        backbone,
        data,
        preprocessing,
        folder,
        seed=seed,
        progress=lambda batches: progress.track(batches, f"features of {data.source}"),
    )


def _hold_out(features: Features, seed: int) -> tuple[Features, Features]:
    log.warning(
        "no --val was given: %d %% of --data are held out. If the model was trained on them, its accuracy there is "
        "flattering and the configurations will lose more than they say.",
        round(100 * HOLD_OUT),
    )
    parts = divide(features.hashes, {"fit": 1 - HOLD_OUT, "val": HOLD_OUT}, seed + 1)
    return _take(features, parts["fit"]), _take(features, parts["val"])


def _take(features: Features, rows: NDArray[np.int64]) -> Features:
    return replace(
        features,
        logits=features.logits[rows],
        exits=tuple(store[rows] for store in features.exits),
        labels=features.labels[rows],
        hashes=features.hashes[rows],
    )


def _record(
    backbone: Backbone,
    heads: Sequence[Sequence[TrainedHead]],
    features: Features,
    parts: dict[str, NDArray[np.int64]],
) -> tuple[list[list[TrainedHead]], float, Records]:
    """Fit every temperature on its split, and write down what each head says of all held-out samples."""
    rows, labels = parts["temperature"], features.labels
    calibrated: list[list[TrainedHead]] = []
    names, predictions, confidences = [], [], []

    def record(logits: NDArray[np.float32]) -> float:
        temperature = fit_temperature(logits[rows], labels[rows])
        predictions.append(logits.argmax(axis=1))
        confidences.append(softmax(logits, temperature).max(axis=1))
        return temperature

    for point, of_exit, store in zip(backbone.points, heads, features.exits, strict=True):
        pooled = torch.from_numpy(np.asarray(store))
        names += [(str(point.number), head.type) for head in of_exit]
        calibrated.append([replace(head, temperature=record(head.logits(pooled).numpy())) for head in of_exit])
    final_temperature = record(np.asarray(features.logits))
    split = np.empty(len(features), dtype="<U16")
    for name, members in parts.items():
        split[members] = name
    records = Records(
        heads=tuple(names),
        predictions=np.stack(predictions, axis=1).astype(np.int64),
        confidences=np.stack(confidences, axis=1),
        labels=labels,
        hashes=features.hashes,
        split=split,
    )
    return calibrated, final_temperature, records


def _warn_about_overlap(fit: Features, held_out: Features) -> None:
    shared = int(np.isin(held_out.hashes, fit.hashes).sum())
    if shared:
        log.warning(
            "%d of the %d validation pictures are also in --data; the heads have seen them", shared, len(held_out)
        )


def _warn_about_chance(records: Records) -> None:
    accuracy = float((records.predictions[:, -1] == records.labels).mean())
    chance = np.bincount(records.labels).max() / len(records)
    if accuracy < 1.5 * chance:
        log.warning(
            "the model itself is right on %.1f %% of the validation samples, hardly more than always naming the most "
            "frequent class (%.1f %%); check the class order (--classes) and the preprocessing (`dyce inspect`)",
            100 * accuracy,
            100 * chance,
        )
