"""A small model, and checkpoints in the working directory."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dyce_export.sources.source import Source

IMAGE = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)


class Net(nn.Module):
    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3)
        self.fc = nn.Linear(4, 5)
        self.drop = nn.Dropout()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(self.drop(self.conv(x).mean((2, 3))))
        return logits


def saved(content: Any, name: str = "model.pt") -> str:
    torch.save(content, name)
    return name


def timm_weights(name: str, **options: Any) -> dict[str, torch.Tensor]:
    import timm

    torch.manual_seed(1)
    weights: dict[str, torch.Tensor] = timm.create_model(name, **options).state_dict()
    return weights


def holds(source: Source, weights: dict[str, torch.Tensor]) -> bool:
    assert source.module is not None
    own = source.module.state_dict()
    return own.keys() == weights.keys() and all(torch.equal(own[name], weights[name]) for name in own)
