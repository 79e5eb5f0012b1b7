"""Write the parts of the bundle of one model: the pieces with their manifest, and the test vectors."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dyce_calibration.heads.temperature import softmax
from dyce_calibration.heads.training import TrainedHead
from dyce_export.calibrate import Calibration
from dyce_export.graph.onnx_graphs import IMAGE
from dyce_export.graph.pieces import builtin_head, tensor_table, write_backbone, write_heads
from dyce_export.graph.programs import network_program
from dyce_export.prepare import Prepared
from dyce_export.verification.probes import synthetic_images
from dyce_export.verification.verify import Reference
from dyce_runtime.bundle.configuration import Configuration
from dyce_runtime.bundle.manifest import FINAL, SCHEMA_VERSION, Input, Manifest, Network
from dyce_runtime.bundle.reader import (
    RECORDS,
    SPLITS,
    Bundle,
)
from dyce_runtime.bundle.test_vectors import Vectors, write_vectors
from dyce_runtime.inputs.preprocessing import preprocess

_TEST_VECTORS = 8
# Splits whose samples may be used before configurations are certified and tested.
_MAY_BE_SEEN = ("temperature", "search")
_PACKAGES = ("dyce-export", "torch", "timm", "onnx", "onnx-ir", "onnxscript", "onnxruntime")


def probe_images(prepared: Prepared, calibration: Calibration | None, count: int) -> Tensor:
    """Return the images (count, C, H, W) float32 on which the pieces are compared with torch.

    They are spread over the data set, or synthetic without data. None of them is in the certification or test split.
    The first ones become test vectors and do not depend on ``count``. A small data set may give fewer than ``count``.
    """
    source, data = prepared.source, prepared.val or prepared.data
    if data is None or calibration is None:
        return synthetic_images(count, source.input_size)
    usable = np.flatnonzero(np.isin(data.hashes, np.concatenate([calibration.hashes[name] for name in _MAY_BE_SEEN])))
    spread = [np.linspace(0, len(usable) - 1, number).astype(int) for number in (_TEST_VECTORS, count)]
    rows = usable[list(dict.fromkeys(np.concatenate(spread).tolist()))[:count]]
    return torch.from_numpy(preprocess(data.images(rows), source.preprocessing))


def write_pieces(
    prepared: Prepared, heads: Sequence[Sequence[TrainedHead]], calibration: Calibration | None, folder: Path
) -> Manifest:
    """Write the pieces, the records and the hashes of the splits' samples into ``folder``, and return the manifest.

    The manifest has no spans and no file hashes yet.

    Args:
        heads: the heads of each exit, in execution order.
        calibration: None if the heads are untrained.
    """
    source, backbone = prepared.source, prepared.backbone
    assert prepared.graph is not None
    temperature = calibration.final_temperature if calibration else 1.0
    bodies = write_backbone(
        prepared.graph, backbone, source.input_size, prepared.classes, prepared.total_macs, temperature, folder
    )
    segments = [piece.id for piece in bodies if piece.role == "segment"]
    final = builtin_head(segments[-1], temperature)
    head_pieces, exits = write_heads(backbone, heads, final, trained=calibration is not None, folder=folder)
    if calibration is not None:
        (folder / RECORDS).parent.mkdir()
        calibration.records.save(folder / RECORDS)
        np.savez_compressed(folder / SPLITS, **calibration.hashes)  # type: ignore[arg-type]
    return Manifest(
        schema_version=SCHEMA_VERSION,
        requires=(),
        producer=_producer(),
        networks=(Network(FINAL, prepared.model, (Input(IMAGE, source.preprocessing),), tuple(e.id for e in exits)),),
        tensors=tensor_table(backbone.points, source.input_size, prepared.classes),
        pieces=(*bodies, *head_pieces),
        exits=tuple(exits),
        program=network_program([IMAGE], segments, exits),
        heads="untrained" if calibration is None else "trained",
        files={},
        splits=calibration.splits if calibration else None,
        suspicious=prepared.suspicious,
    )


def write_test_vectors(reference: Reference, probe: Configuration, bundle: Bundle) -> None:
    """Store inputs with the logits and scores that torch computes for them, so that a device can check its engine."""
    count, manifest = _TEST_VECTORS, bundle.manifest
    logits = [*reference.head_logits, [reference.logits]]
    scores = {
        (exit.id, head.type): softmax(of_head[:count], head.temperature).max(axis=1).astype(np.float32)
        for exit, of_exit in zip(manifest.exits, logits, strict=True)
        for head, of_head in zip(exit.heads, of_exit, strict=True)
    }
    thresholds = np.array([setting.threshold for setting in probe.exits.values()], np.float32)
    inputs = {manifest.input.name: reference.images[:count]}
    write_vectors(Vectors(inputs, reference.logits[:count], scores, thresholds), bundle)


def _producer() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
