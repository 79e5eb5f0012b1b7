"""Heads: small networks on pooled activations, trained together on cached features."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from dyce_calibration.heads import resume
from dyce_calibration.heads.features import Features
from dyce_calibration.processes import ALONE, Processes
from dyce_runtime.errors import UsageError

DEFAULT_TYPE = "mlp1x1000"
#: The types that were published with DyCE (arXiv 2403.01695).
TYPES = ("mlp1x1000", "mlp3x500", "mlp3x1000", "mlp5x500", "mlp5x1000")


@dataclass(frozen=True)
class Recipe:
    """How heads are trained: AdamW, cosine schedule with warm-up, label smoothing.

    The loss is (1 - distillation) * cross-entropy + distillation * T^2 KL(softmax(base / T) || softmax(head / T)) with
    T = ``distillation_temperature``; without labels it is distillation alone.

    Attributes:
        epochs: passes over the features.
        batch: samples per step, over all processes.
        learning_rate: largest learning rate of the schedule.
        by_width: divide the learning rate by the square root of a layer's inputs, so that one rate suits a linear head
            on 32 features and five layers of 1000 (docs/recipes.md).
        weight_decay: weight decay of AdamW.
        warmup: share of the steps with a rising learning rate.
        label_smoothing: probability mass that is spread over all classes.
        distillation: share of the soft targets in the loss, 0 to 1.
        distillation_temperature: T of the soft targets.
        hard_first: weight every sample by 2 * (1 - confidence of the first exit), so that samples that exit there
            count less at the later ones; at the first exit itself all samples have equal weight.
        average: decay of the moving average of the weights that is kept in the end; 0 keeps the last weights. The
            decay rises from 0.1 as (1 + step) / (10 + step), or few steps would keep the initial weights.
    """

    epochs: int = 30
    batch: int = 256
    learning_rate: float = 0.15
    by_width: bool = True
    weight_decay: float = 0.05
    warmup: float = 0.1
    label_smoothing: float = 0.1
    distillation: float = 0.0
    distillation_temperature: float = 2.0
    hard_first: bool = False
    average: float = 0.0

    def rate_of(self, inputs: int) -> float:
        """Return the learning rate of a layer with that many inputs."""
        return self.learning_rate / inputs**0.5 if self.by_width else self.learning_rate


#: The recipe of the DyCE release.
PUBLISHED = Recipe(epochs=50, learning_rate=6.25e-4, by_width=False, hard_first=True, average=0.9999)


@dataclass(frozen=True)
class TrainedHead:
    """The weights of a head.

    Attributes:
        type: such as ``mlp1x1000``; see :func:`make_mlp`.
        layers: weight (out, in) and bias (out,) of each linear layer, float32, with ReLU between the layers.
        temperature: divisor of the logits before the softmax.
    """

    type: str
    layers: tuple[tuple[NDArray[np.float32], NDArray[np.float32]], ...]
    temperature: float = 1.0

    def logits(self, pooled: Tensor) -> Tensor:
        """Return unscaled logits (N, classes) for pooled activations (N, features), computed in the dtype of these."""
        for index, layer in enumerate(self.layers):
            weight, bias = (torch.from_numpy(part).to(pooled.dtype) for part in layer)
            pooled = F.linear(F.relu(pooled) if index else pooled, weight, bias)
        return pooled

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one sample, without pooling."""
        return sum(weight.size for weight, _ in self.layers)


def parse_type(type: str) -> tuple[int, int]:
    """Parse a head type into the number of layers and the hidden width. Raises UsageError if it is invalid."""
    match = re.fullmatch(r"mlp([1-9]\d*)x([1-9]\d*)", type)
    if match is None:
        raise UsageError(f"there is no head type {type!r}; expected mlp<layers>x<width>, such as {DEFAULT_TYPE}")
    return int(match[1]), int(match[2])


def make_mlp(type: str, features: int, classes: int) -> nn.Sequential:
    """Build a head of type ``mlp<layers>x<hidden width>``, with truncated normal weights and zero biases.

    ``mlp1x1000`` is a single linear layer: the width is that of hidden layers, of which it has none.
    """
    depth, width = parse_type(type)
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
    types: Sequence[str],
    recipe: Recipe,
    *,
    seed: int,
    progress: Callable[[Iterable[int]], Iterable[int]] = lambda epochs: epochs,
    checkpoint: Path | None = None,
    processes: Processes = ALONE,
) -> list[list[TrainedHead]]:
    """Train a head of every type at every exit, all together on the same batches; return them exit by exit.

    Features are standardised for training (mean 0, variance 1 over the data set). The exported first layer takes the
    raw features, since the standardisation is folded into it.

    Args:
        seed: seed of the initial weights and of the order of batches.
        progress: wraps the iteration over epochs.
        checkpoint: file to which the state is saved after every epoch. Interrupted training resumes from it and ends
            with the same result.
        processes: processes with their own shares of the features. They all end with the heads that one process would
            have trained on all features, except for rounding.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classes = features.logits.shape[1]
        moments = [_moments(store, processes) for store in features.exits]
        heads = _Heads([make_mlp(type, store.shape[1], classes) for type in types] for store in features.exits)
        fit(heads, features, moments, recipe, progress, checkpoint, processes)
    return [
        [_fold(type, head, *moment) for type, head in zip(types, of_exit, strict=True)]
        for of_exit, moment in zip(heads.by_exit(), moments, strict=True)
    ]


class _Heads(nn.Module):
    """All heads of all exits as one module: maps inputs, exit by exit, to logits, exit by exit and head by head."""

    def __init__(self, heads: Iterable[Sequence[nn.Sequential]]) -> None:
        super().__init__()
        self._exits = nn.ModuleList(nn.ModuleList(of_exit) for of_exit in heads)

    def by_exit(self) -> list[list[nn.Sequential]]:
        return [list(of_exit) for of_exit in self._exits]  # type: ignore[call-overload]

    def forward(self, inputs: Sequence[Tensor]) -> list[list[Tensor]]:
        return [[head(x) for head in of_exit] for of_exit, x in zip(self.by_exit(), inputs, strict=True)]


def fit(
    heads: nn.Module,
    features: Features,
    moments: Sequence[tuple[Tensor, Tensor]],
    recipe: Recipe,
    progress: Callable[[Iterable[int]], Iterable[int]],
    checkpoint: Path | None,
    processes: Processes,
) -> None:
    """Train a module on cached features, in place.

    Args:
        heads: maps features exit by exit to logits exit by exit, head by head. Its linear layers are trained.
        moments: for every exit, the offset and the divisor by which its features are standardised.
        progress, checkpoint, processes: see :func:`train_heads`.
    """
    samples = int(processes.sum(torch.tensor(len(features))))
    steps = math.ceil(samples / recipe.batch)
    state = _State(heads, recipe, steps * recipe.epochs)
    finished = state.restore(checkpoint, processes)
    model = processes.together(heads)
    own = math.ceil(recipe.batch / processes.count)
    # Dividing by this gives the mean over the whole batch, since `together` averages gradients over processes.
    size = min(recipe.batch, samples) / processes.count
    for epoch in progress(range(recipe.epochs)):
        if epoch < finished:
            continue
        for rows in _batches(steps, own):
            inputs = [
                (torch.from_numpy(store[rows]) - mean) / std
                for store, (mean, std) in zip(features.exits, moments, strict=True)
            ]
            losses = _losses(model(inputs), _Targets.of(features, rows), recipe)
            state.step(losses.sum() / size)
        state.save(checkpoint, epoch + 1)
    state.average.keep()


class _State:
    """The state of training: weights, optimiser, schedule and moving average."""

    def __init__(self, heads: nn.Module, recipe: Recipe, steps: int) -> None:
        self._heads = heads
        parameters = list(heads.parameters())
        layers = [module for module in heads.modules() if isinstance(module, nn.Linear)]
        groups = [{"params": [*layer.parameters()], "lr": recipe.rate_of(layer.in_features)} for layer in layers]
        self._optimiser = torch.optim.AdamW(groups, weight_decay=recipe.weight_decay, fused=True)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimiser, _cosine(steps, recipe.warmup))
        self.average = _Average(parameters, recipe.average)

    def step(self, loss: Tensor) -> None:
        self._optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimiser.step()
        self._schedule.step()
        self.average.update()

    def save(self, path: Path | None, epochs: int) -> None:
        if path is not None:
            parts = {name: part.state_dict() for name, part in self._parts().items()}
            resume.save({"epochs": epochs, "random": torch.get_rng_state(), **parts}, path)

    def restore(self, path: Path | None, processes: Processes) -> int:
        """Restore the state that was saved last; return the number of epochs that are done."""
        found = None if path is None else resume.load(path, ("epochs", "random", *self._parts()))
        done = processes.gather(np.array([0 if found is None else found["epochs"]]))
        # Processes that were not stopped at once may differ by an epoch; then all start again.
        if found is None or done.min() != done.max():
            return 0
        for name, part in self._parts().items():
            part.load_state_dict(found[name])
        torch.set_rng_state(found["random"])
        return int(found["epochs"])

    def _parts(self) -> dict[str, Any]:
        return {"heads": self._heads, "optimiser": self._optimiser, "schedule": self._schedule, "average": self.average}


def _losses(logits: Sequence[Sequence[Tensor]], targets: _Targets, recipe: Recipe) -> Tensor:
    """Return the loss of every sample, summed over all heads, (N,)."""
    weight = torch.ones(len(logits[0][0]))
    total = torch.zeros_like(weight)
    for number, of_exit in enumerate(logits):
        for found in of_exit:
            total = total + weight * targets.losses(found, recipe)
        if number == 0 and recipe.hard_first:
            weight = 2 * (1 - F.softmax(of_exit[0].detach(), dim=1).amax(dim=1))
    return total


class _Average:
    """A moving average of the parameters, kept beside them during training."""

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self._parameters, self._decay, self._step = parameters, decay, 0
        self._average = [parameter.detach().clone() for parameter in parameters] if decay else []

    def update(self) -> None:
        if self._average:
            self._step += 1
            decay = min(self._decay, (1 + self._step) / (10 + self._step))
            torch._foreach_lerp_(self._average, [parameter.detach() for parameter in self._parameters], 1 - decay)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self._step, "average": self._average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._step, self._average = state["step"], state["average"]

    def keep(self) -> None:
        """Replace the parameters by their averages."""
        for parameter, average in zip(self._parameters, self._average, strict=False):
            parameter.data.copy_(average)


def untrained_heads(
    pooled: Sequence[Tensor], classes: int, types: Sequence[str], *, seed: int
) -> list[list[TrainedHead]]:
    """Return heads with random weights, exit by exit, for tests of structure and speed.

    Their temperatures are chosen so that confidences differ between inputs: otherwise no exit decision could be
    verified.

    Args:
        pooled: for every exit, pooled activations (N, features) of a few inputs.
    """
    heads = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for tensor in pooled:
            mean, std = tensor.mean(0), tensor.std(0).clamp_min(1e-6 * float(tensor.abs().max()) + 1e-12)
            heads.append([_untrained(type, tensor, mean, std, classes) for type in types])
    return heads


def _untrained(type: str, pooled: Tensor, mean: Tensor, std: Tensor, classes: int) -> TrainedHead:
    mlp = make_mlp(type, pooled.shape[1], classes)
    with torch.no_grad():
        spread = mlp((pooled - mean) / std).std()
    return _fold(type, mlp, mean, std, temperature=float(spread) / 3 or 1.0)


@dataclass(frozen=True)
class _Targets:
    labels: Tensor | None
    base_logits: Tensor

    @staticmethod
    def of(features: Features, rows: slice) -> _Targets:
        labels = torch.from_numpy(features.labels[rows]) if features.label_source == "data" else None
        return _Targets(labels, torch.from_numpy(features.logits[rows]))

    def losses(self, logits: Tensor, recipe: Recipe) -> Tensor:
        """Return the loss of every sample, (N,)."""
        soft = recipe.distillation if self.labels is not None else 1.0
        total = torch.zeros(len(logits))
        if self.labels is not None and soft < 1:
            hard = F.cross_entropy(logits, self.labels, label_smoothing=recipe.label_smoothing, reduction="none")
            total = total + (1 - soft) * hard
        if soft > 0:
            scale = recipe.distillation_temperature
            base = F.softmax(self.base_logits / scale, dim=1)
            divergence = F.kl_div(F.log_softmax(logits / scale, dim=1), base, reduction="none").sum(1)
            total = total + soft * scale**2 * divergence
        return total


def _batches(count: int, size: int) -> Iterator[slice]:
    """Yield ranges of consecutive rows in random order; the rows themselves were shuffled when they were stored."""
    for number in torch.randperm(count).tolist():
        yield slice(number * size, (number + 1) * size)


def _moments(store: NDArray[np.float32], processes: Processes) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each feature over all processes, in one pass over the file."""
    sums = np.zeros((3, store.shape[1]))
    for rows in range(0, len(store), 4096):
        chunk = store[rows : rows + 4096].astype(np.float64)
        sums += np.stack([np.full(chunk.shape[1], len(chunk)), chunk.sum(0), (chunk**2).sum(0)])
    count, total, squares = processes.sum(torch.from_numpy(sums)).numpy()
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    # A constant feature carries no information, and a tiny divisor would amplify its rounding errors.
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
