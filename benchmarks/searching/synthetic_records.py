"""Write synthetic records of the size of ImageNet's validation set for 50 positions x 5 head types, in DyCE's formats.

Every sample has an ease, and every head an ability that rises with depth and, a little, with its size. The probability
that a head is right rises with the sum of ability, ease and random parts; its confidence follows the same sum with
further noise. So heads agree on which samples are easy, later heads are more accurate, and confidence is informative
but not perfect, as with recorded heads of real models.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

POSITIONS, SAMPLES, CLASSES = 50, 50_000, 1000
TYPES = {"mlp1x1000": 0.5e6, "mlp3x500": 1.0e6, "mlp3x1000": 2.5e6, "mlp5x500": 1.5e6, "mlp5x1000": 4.5e6}
BACKBONE_MACS = 4.1e9


def write(folder: Path, split: str, seed: int, samples: int = SAMPLES, positions: int = POSITIONS) -> None:
    """Write ``SPLIT.npz`` and ``macs.json``."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, CLASSES, samples)
    ease = random.normal(0, 1.5, samples)
    predictions: list[np.ndarray] = []
    confidences: list[np.ndarray] = []
    for position in range(positions):
        shared = random.normal(0, 0.5, samples)
        for size in range(len(TYPES)):
            ability = -2.5 + 4.0 * ((position + 1) / positions) ** 0.7 + 0.1 * size
            add(random, labels, ability + ease + shared, predictions, confidences)
    add(random, labels, 2.2 + ease, predictions, confidences)
    np.savez(
        folder / f"{split}.npz",
        label=labels[:, None],
        preds=np.stack(predictions)[:, :, None],
        confs=np.stack(confidences)[:, :, None],
    )
    share = np.arange(1, positions + 1) / (positions + 1)
    costs = {
        "head": [{"name": name, "macs": [macs] * positions} for name, macs in TYPES.items()],
        "backbone": {"macs": [*(share * BACKBONE_MACS).tolist(), BACKBONE_MACS], "ori_macs": BACKBONE_MACS},
    }
    (folder / "macs.json").write_text(json.dumps(costs))


def add(
    random: np.random.Generator, labels: np.ndarray, knowledge: np.ndarray, predictions: list, confidences: list
) -> None:
    own = knowledge + random.normal(0, 0.8, len(labels))
    right = random.random(len(labels)) < 1 / (1 + np.exp(-2 * own))
    predictions.append(np.where(right, labels, random.integers(0, CLASSES, len(labels))).astype(np.int16))
    blurred = own + random.normal(0, 0.7, len(labels))
    confidences.append(np.clip(1 / (1 + np.exp(-1.6 * blurred)), 1 / CLASSES, 1).astype(np.float32))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for seed, split in enumerate(("search", "test")):
        write(folder, split, seed)


if __name__ == "__main__":
    main()
