"""Train the model of the demo: a small residual network for scikit-learn's handwritten digits.

``python -m benchmarks.digits FOLDER`` trains it on two thirds of ``digits#train``, in seconds on a CPU. It writes the
weights, ``digits.pt``, and the images: ``train.npz``, and ``val.npz``, which the model has not seen. ``digits_net`` is
the factory that ``dyce-export --model benchmarks.digits:digits_net`` calls.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dyce_runtime.bundle.manifest import Preprocessing
from dyce_runtime.inputs.datasets import open_dataset
from dyce_runtime.inputs.preprocessing import preprocess

INPUT = Preprocessing(resize=16, crop=(16, 16), interpolation="bilinear", mean=(0.5,), std=(0.5,))
EPOCHS = 30


class Block(nn.Module):
    """Two 3x3 convolutions with a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 or inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResidualNet(nn.Module):
    """A stem, residual blocks, average pooling and a linear classifier."""

    def __init__(self, widths: tuple[int, ...], strides: tuple[int, ...], classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU())
        pairs = zip((widths[0], *widths[:-1]), widths, strides, strict=True)
        self.blocks = nn.Sequential(*(Block(*pair) for pair in pairs))
        self.classifier = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.blocks(self.stem(x)).mean((2, 3)))


def digits_net() -> nn.Module:
    """Return an untrained network with six blocks for 16x16 greyscale images."""
    return ResidualNet(widths=(32, 32, 64, 64, 128, 128), strides=(1, 1, 2, 1, 2, 1))


def train(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    batch: int,
    augment: bool = False,
    bf16: bool = False,
    checkpoint: Path | None = None,
) -> None:
    """Train a classifier in place, with SGD and a one-cycle schedule.

    Args:
        images: (N, C, H, W) float32.
        labels: (N,) int64.
        augment: flip half of the images horizontally.
        bf16: compute in bfloat16 where torch considers it safe; twice as fast on a CPU that supports it.
        checkpoint: file from which interrupted training resumes; it is deleted at the end.
    """
    model.to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = epochs * -(-len(images) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=0.1, total_steps=steps)
    model.train()
    state: dict[str, Any] = {"model": model, "optimiser": optimiser, "schedule": schedule}
    done = _resume(state, checkpoint) if checkpoint else 0
    for epoch in range(done, epochs):
        total = 0.0
        for rows in torch.randperm(len(images)).split(batch):
            x = images[rows]
            if augment:
                x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(3), x)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = F.cross_entropy(model(x.contiguous(memory_format=torch.channels_last)), labels[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item() * len(rows)
        print(f"epoch {epoch + 1}/{epochs}: loss {total / len(images):.3f}", file=sys.stderr, flush=True)
        if checkpoint:
            parts = {name: part.state_dict() for name, part in state.items()}
            torch.save({**parts, "random": torch.get_rng_state(), "epoch": epoch + 1}, checkpoint.with_suffix(".new"))
            checkpoint.with_suffix(".new").replace(checkpoint)
    if checkpoint:
        checkpoint.unlink(missing_ok=True)
    model.to(memory_format=torch.contiguous_format).eval()


def _resume(state: dict[str, Any], checkpoint: Path) -> int:
    """Restore the state of the parts and of the random generator; return the number of completed epochs."""
    if not checkpoint.is_file():
        return 0
    found = torch.load(checkpoint, weights_only=True)
    for name, part in state.items():
        part.load_state_dict(found[name])
    torch.set_rng_state(found["random"])
    return int(found["epoch"])


def main(folder: Path) -> None:
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    data = open_dataset("digits#train")
    rows = np.arange(len(data))
    for name, part in {"train": rows[rows % 3 > 0], "val": rows[rows % 3 == 0]}.items():
        pictures = data.take(part)
        np.savez(folder / f"{name}.npz", images=np.stack(pictures.images(range(len(part)))), labels=pictures.labels)
    seen = open_dataset(folder / "train.npz")
    images = torch.from_numpy(preprocess(seen.images(range(len(seen))), INPUT))
    assert seen.labels is not None
    model = digits_net()
    train(model, images, torch.from_numpy(seen.labels), epochs=EPOCHS, batch=64)
    torch.save(model.state_dict(), folder / "digits.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
