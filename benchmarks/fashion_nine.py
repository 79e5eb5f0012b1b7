"""Fashion-MNIST with nine exit points: the fixed base network, heads of all five types, and their records.

``python -m benchmarks.fashion_nine`` trains the base on 50,000 of the training pictures (nine blocks of two 3x3
convolutions, widths 32, 64 and 128, about 124 MMACs), then all heads at all positions, and records what each says of
the 10,000 training pictures that nothing was trained on and of the 10,000 test pictures. Hours on two cores; every step
is kept in ``benchmarks/.cache/fashion_nine`` and is not done again. ``records.npz`` there has the splits of an export's
``--val`` (temperature, search, certification) and, as ``test``, the test pictures.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.digits import ResidualNet, train
from benchmarks.fashion_mnist import DEBIAN, INPUT, UNSEEN
from dyce_calibration.costs import write_costs
from dyce_calibration.features import Features, extract_features
from dyce_calibration.heads import TYPES, Recipe, TrainedHead, train_heads
from dyce_calibration.records import Records
from dyce_calibration.splits import divide
from dyce_calibration.temperature import fit_temperature, softmax
from dyce_export.backbone import Backbone
from dyce_export.calibrate import macs_of_heads
from dyce_export.capture import capture
from dyce_export.exit_points import ExitPoints, find_exit_points
from dyce_runtime.datasets import open_dataset
from dyce_runtime.preprocessing import preprocess

CACHE = Path("benchmarks/.cache/fashion_nine")
EPOCHS = 8
RECIPE = Recipe(epochs=12)
SHARES = {"temperature": 0.10, "search": 0.65, "certification": 0.25}


def make_model() -> torch.nn.Module:
    """The untrained base."""
    return ResidualNet(widths=(32,) * 3 + (64,) * 3 + (128,) * 3, strides=(1, 1, 1, 2, 1, 1, 2, 1, 1))


def rows_of(data: Path) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the training pictures: those that train, and those that nothing sees."""
    order = np.random.default_rng(0).permutation(len(open_dataset(f"{data}#train")))
    return order[UNSEEN:], order[:UNSEEN]


def trained_base(data: Path) -> torch.nn.Module:
    path = CACHE / "base.pt"
    torch.manual_seed(0)
    model = make_model()
    if not path.is_file():
        dataset, (fit, _) = open_dataset(f"{data}#train"), rows_of(data)
        assert dataset.labels is not None
        images = torch.from_numpy(preprocess(dataset.images(fit), INPUT))
        train(model, images, torch.from_numpy(dataset.labels[fit]), epochs=EPOCHS, batch=128, augment=True)
        torch.save(model.state_dict(), path)
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()


def backbone_of(model: torch.nn.Module) -> tuple[Backbone, ExitPoints]:
    program = capture(model, (1, 28, 28))
    points = find_exit_points(program)
    return Backbone(program, points.points), points


def features_of(backbone: Backbone, data: Path) -> tuple[Features, Features, Features]:
    """Of the pictures that train, of those that nothing sees, and of the test pictures."""
    train_set, test_set = open_dataset(f"{data}#train"), open_dataset(f"{data}#test")
    fit, unseen = (
        replace(train_set, items=train_set.items[rows], labels=train_set.labels[rows])  # type: ignore[index]
        for rows in rows_of(data)
    )
    parts = {"fit": fit, "unseen": unseen, "test": test_set}
    fit_features, *others = (
        extract_features(backbone, part, INPUT, CACHE / "features" / name, seed=0) for name, part in parts.items()
    )
    return fit_features, others[0], others[1]


def record(heads: list[list[TrainedHead]], unseen: Features, test: Features, points: ExitPoints) -> Records:
    """What every head says, calibrated on the split for temperatures."""
    parts = divide(unseen.hashes, SHARES, seed=0)
    rows = parts["temperature"]
    split = np.empty(len(unseen), dtype="<U16")
    for name, members in parts.items():
        split[members] = name
    names = [(str(p.number), head.type) for p, of_exit in zip(points.points, heads, strict=True) for head in of_exit]
    predictions, confidences = [], []
    flat = [(index, head) for index, of_exit in enumerate(heads) for head in of_exit]
    for index, head in [*flat, (None, None)]:
        both = []
        for features in (unseen, test):
            if head is None or index is None:
                both.append(np.asarray(features.logits))
            else:
                both.append(head.logits(torch.from_numpy(np.asarray(features.exits[index]))).numpy())
        temperature = fit_temperature(both[0][rows], unseen.labels[rows])
        logits = np.concatenate(both)
        predictions.append(logits.argmax(1))
        confidences.append(softmax(logits, temperature).max(1))
    return Records(
        tuple(names),
        np.stack(predictions, 1).astype(np.int64),
        np.stack(confidences, 1),
        np.concatenate([unseen.labels, test.labels]),
        np.concatenate([unseen.hashes, test.hashes]),
        np.concatenate([split, np.full(len(test), "test")]),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DEBIAN, help="folder with the four IDX files")
    data = parser.parse_args().data
    CACHE.mkdir(parents=True, exist_ok=True)
    if (CACHE / "records.npz").is_file():
        return
    backbone, points = backbone_of(trained_base(data))
    fit, unseen, test = features_of(backbone, data)
    heads = train_heads(fit, TYPES, RECIPE, seed=0)
    write_costs(macs_of_heads(points.points, heads, points.total_macs), CACHE / "costs.json")
    record(heads, unseen, test, points).save(CACHE / "records.npz")


if __name__ == "__main__":
    main()
