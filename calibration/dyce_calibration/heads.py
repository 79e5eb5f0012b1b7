"""Heads: small networks on pooled activations, trained together on cached features."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from dyce_calibration.features import Features
from dyce_runtime.errors import UsageError

DEFAULT_TYPE = "mlp1x1000"


@dataclass(frozen=True)
class Recipe:
    """How heads are trained: AdamW, cosine schedule with warm-up, label smoothing.

    With labels the loss is cross-entropy; without, soft distillation from the base:
    T^2 KL(softmax(base / T) || softmax(head / T)) with T = ``distillation_temperature``.
    """

    epochs: int = 30
    batch: int = 256
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup: float = 0.1
    label_smoothing: float = 0.1
    distillation_temperature: float = 2.0


@dataclass(frozen=True)
class TrainedHead:
    """A head as numbers.

    Attributes:
        layers: weight (out, in) and bias (out,) of each linear layer, float32; ReLU stands between them.
        temperature: divisor of the logits before the softmax.
    """

    type: str
    layers: tuple[tuple[NDArray[np.float32], NDArray[np.float32]], ...]
    temperature: float = 1.0

    def logits(self, pooled: Tensor) -> Tensor:
        """Unscaled logits (N, classes) of pooled activations (N, features), computed in the dtype of these."""
        for index, layer in enumerate(self.layers):
            weight, bias = (torch.from_numpy(part).to(pooled.dtype) for part in layer)
            pooled = F.linear(F.relu(pooled) if index else pooled, weight, bias)
        return pooled

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one sample, pooling not counted."""
        return sum(weight.size for weight, _ in self.layers)


def make_mlp(type: str, features: int, classes: int) -> nn.Sequential:
    """A head of the given type, ``mlp<layers>x<hidden width>``: truncated normal weights, zero biases.

    ``mlp1x1000`` is a single linear layer: the width is that of hidden layers, of which it has none.
    """
    match = re.fullmatch(r"mlp([1-9]\d*)x([1-9]\d*)", type)
    if match is None:
        raise UsageError(f"there is no head type {type!r}; expected mlp<layers>x<width>, such as {DEFAULT_TYPE}")
    depth, width = map(int, match.groups())
    sizes = [features, *[width] * (depth - 1), classes]
    modules: list[nn.Module] = []
    for index in range(depth):
        linear = nn.Linear(sizes[index], sizes[index + 1])
        nn.init.trunc_normal_(linear.weight, std=0.02)
        nn.init.zeros_(linear.bias)
        modules += [*([nn.ReLU()] if index else []), linear]
    return nn.Sequential(*modules)


def train_heads(
    features: Features,
    type: str,
    recipe: Recipe,
    *,
    seed: int,
    progress: Callable[[Iterable[int]], Iterable[int]] = lambda epochs: epochs,
) -> list[TrainedHead]:
    """Train one head per exit, all together, on the same batches.

    Features are standardised for training (mean 0, variance 1 over the data set); the exported first layer takes
    the raw ones, with the standardisation folded in.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classes = features.logits.shape[1]
        moments = [_moments(store) for store in features.exits]
        heads = [make_mlp(type, store.shape[1], classes) for store in features.exits]
        parameters = [p for head in heads for p in head.parameters()]
        optimiser = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
        steps = recipe.epochs * math.ceil(len(features) / recipe.batch)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, _cosine(steps, recipe.warmup))
        for _ in progress(range(recipe.epochs)):
            for rows in _batches(len(features), recipe.batch):
                targets = _Targets.of(features, rows)
                loss = torch.stack(
                    [
                        targets.loss(head((torch.from_numpy(store[rows]) - mean) / std), recipe)
                        for head, store, (mean, std) in zip(heads, features.exits, moments, strict=True)
                    ]
                ).sum()
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                schedule.step()
    return [_fold(type, head, *moment) for head, moment in zip(heads, moments, strict=True)]


def untrained_heads(pooled: Sequence[Tensor], classes: int, type: str, *, seed: int) -> list[TrainedHead]:
    """Heads with random weights, for structure and speed.

    Their logits are scaled so that confidences differ between inputs: otherwise no exit decision could be
    verified. ``pooled`` holds, per exit, pooled activations (N, features) of a few inputs.
    """
    heads = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for tensor in pooled:
            mean, std = tensor.mean(0), tensor.std(0).clamp_min(1e-6 * float(tensor.abs().max()) + 1e-12)
            mlp = make_mlp(type, tensor.shape[1], classes)
            with torch.no_grad():
                spread = mlp((tensor - mean) / std).std()
            heads.append(_fold(type, mlp, mean, std, temperature=float(spread) / 3 or 1.0))
    return heads


@dataclass(frozen=True)
class _Targets:
    labels: Tensor | None
    base_logits: Tensor

    @staticmethod
    def of(features: Features, rows: slice) -> _Targets:
        labels = torch.from_numpy(features.labels[rows]) if features.label_source == "data" else None
        return _Targets(labels, torch.from_numpy(features.logits[rows]))

    def loss(self, logits: Tensor, recipe: Recipe) -> Tensor:
        if self.labels is not None:
            return F.cross_entropy(logits, self.labels, label_smoothing=recipe.label_smoothing)
        scale = recipe.distillation_temperature
        base = F.softmax(self.base_logits / scale, dim=1)
        return scale**2 * F.kl_div(F.log_softmax(logits / scale, dim=1), base, reduction="batchmean")


def _batches(count: int, size: int) -> Iterator[slice]:
    """Neighbouring rows, in a random order of batches: the rows themselves are shuffled on disk."""
    starts = torch.arange(0, count, size)
    for start in starts[torch.randperm(len(starts))].tolist():
        yield slice(start, min(start + size, count))


def _moments(store: NDArray[np.float32]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each feature, in one pass over the file."""
    total = np.zeros(store.shape[1])
    squares = np.zeros(store.shape[1])
    for rows in range(0, len(store), 4096):
        chunk = store[rows : rows + 4096].astype(np.float64)
        total += chunk.sum(0)
        squares += (chunk**2).sum(0)
    mean = total / len(store)
    std = np.sqrt(np.maximum(squares / len(store) - mean**2, 0))
    # A constant feature carries nothing; a tiny divisor would turn its rounding errors into signal.
    std = np.maximum(std, 1e-4 * std.max() + 1e-12)
    return torch.from_numpy(mean.astype(np.float32)), torch.from_numpy(std.astype(np.float32))


def _cosine(steps: int, warmup: float) -> Callable[[int], float]:
    rising = max(1, int(steps * warmup))

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))

    return factor


def _fold(type: str, head: nn.Sequential, mean: Tensor, std: Tensor, temperature: float = 1.0) -> TrainedHead:
    """Fold (x - mean) / std into the first layer: W' = W / std, b' = b - W' mean; in float64."""
    linears = [module for module in head if isinstance(module, nn.Linear)]
    layers = [(m.weight.detach().double(), m.bias.detach().double()) for m in linears]
    weight = layers[0][0] / std.double()
    layers[0] = (weight, layers[0][1] - weight @ mean.double())
    return TrainedHead(type, tuple((w.float().numpy(), b.float().numpy()) for w, b in layers), temperature)
