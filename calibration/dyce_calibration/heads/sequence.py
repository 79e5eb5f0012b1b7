"""Exit sequence networks: exits that use what the saver and the earlier exits have computed.

The architecture is that of TinySaver (arXiv 2403.17726). The tokens are the pooled last feature map of the saver and
the pooled activation at every exit of the base model. Each is normalised and embedded, and a small causal transformer
processes them. The logits of an exit are those of the saver plus a linear function of its token. Saver and base are
not changed. Since no token attends to later ones, an exit can be computed as soon as it is reached, from its own token
and the cached keys and values of the earlier ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dyce_calibration.heads.features import Features
from dyce_calibration.heads.training import Recipe, fit
from dyce_calibration.processes import ALONE, Processes
from dyce_runtime.errors import UsageError

ATTENTION_HEADS = 8


def parse_sequence(type: str) -> tuple[int, int]:
    """Parse a type such as ``esn1x64`` into the number of layers and the width. Raises UsageError if it is invalid."""
    match = re.fullmatch(r"esn(\d+)x([1-9]\d*)", type)
    if match is None or int(match[2]) % ATTENTION_HEADS:
        raise UsageError(
            f"there is no exit sequence network {type!r}; expected esn<layers>x<width>, such as esn1x64, with a width "
            f"that {ATTENTION_HEADS} divides"
        )
    return int(match[1]), int(match[2])


class Layer(nn.Module):
    """A transformer layer: causal attention and, unless it is the last layer, two linear layers.

    Both parts are residual and normalise their inputs. A token passes its keys and values on to later tokens.
    """

    def __init__(self, width: int, *, last: bool) -> None:
        super().__init__()
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attended = nn.Linear(width, width)
        self.mlp = None if last else nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))

    def forward(self, token: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
        """Process one token.

        Args:
            token: (N, width).
            before: (N, tokens, 2, width), the keys and values of earlier tokens; None if there are none.

        Returns:
            the token (N, width), and the keys and values of all tokens so far (N, tokens + 1, 2, width).
        """
        query, own = self.query_key_value(normalised(token)).split([token.shape[1], 2 * token.shape[1]], dim=1)
        own = own.unflatten(1, (1, 2, -1))
        known = own if before is None else torch.cat([before, own], dim=1)
        keys, values = (known[:, :, k].unflatten(2, (ATTENTION_HEADS, -1)).transpose(1, 2) for k in range(2))
        query = query.unflatten(1, (ATTENTION_HEADS, 1, -1))
        found = F.scaled_dot_product_attention(query, keys, values)
        token = token + self.attended(found.flatten(1))
        return (token if self.mlp is None else token + self.mlp(normalised(token))), known


class ExitSequence(nn.Module):
    """An exit sequence network.

    Attributes:
        width: size of a token.
        features: number of features of the saver, then of every exit.
        embeddings: embedding of the saver's features, then of those at every exit.
        layers: layers of the transformer; may be empty.
        outputs: output layer of every exit of the base model.
    """

    def __init__(self, features: Sequence[int], classes: int, type: str) -> None:
        """Build an untrained network.

        Args:
            features: number of features of the saver, then of every exit.
            classes: number of classes.
            type: see :func:`parse_sequence`.
        """
        super().__init__()
        layers, self.width = parse_sequence(type)
        self.features, self.classes, width = tuple(features), classes, self.width
        self.embeddings = nn.ModuleList(nn.Linear(count, width) for count in features)
        self.layers = nn.ModuleList(Layer(width, last=k == layers - 1) for k in range(layers))
        self.outputs = nn.ModuleList(nn.Linear(width, classes, bias=False) for _ in features[1:])

    def token(self, index: int, pooled: Tensor, before: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Compute one token when its place in the network is reached.

        Args:
            index: index of the token; 0 is the saver.
            pooled: (N, features) at that place.
            before: for every layer the keys and values of the earlier tokens; see :class:`Layer`.

        Returns:
            the token (N, width), and for every layer the keys and values including this token's.
        """
        token = F.relu(self.embeddings[index](normalised(pooled)))
        caches = []
        for number, layer in enumerate(self.layers):
            token, known = layer(token, before[number] if index else None)
            caches.append(known)
        return token, caches

    def forward(self, inputs: Sequence[Tensor]) -> list[list[Tensor]]:
        """Return the logits (N, classes) of the saver and of every exit.

        Args:
            inputs: pooled features of the saver and of every exit, then the saver's logits.
        """
        *pooled, saver = inputs
        caches: list[Tensor] = []
        logits = [[saver]]
        for index, features in enumerate(pooled):
            token, caches = self.token(index, features, caches)
            if index:
                logits.append([saver + self.outputs[index - 1](token)])
        return logits

    def macs(self, index: int) -> int:
        """Return the multiply-accumulates of one sample at an exit, from 1; the first includes the saver's token."""
        of_saver = self._macs_of_token(0) if index == 1 and self.layers else 0
        return of_saver + self._macs_of_token(index) + self.width * self.classes

    def _macs_of_token(self, index: int) -> int:
        attention = 4 * self.width**2 + 2 * (index + 1) * self.width
        layers = sum(attention + (0 if layer.mlp is None else 8 * self.width**2) for layer in self.layers)
        return self.features[index] * self.width + layers


def normalised(tensor: Tensor) -> Tensor:
    """Normalise the features to mean 0 and variance 1; without learnt scale, since a linear layer always follows."""
    return F.layer_norm(tensor, tensor.shape[1:])


def train_sequence(
    features: Features,
    type: str,
    recipe: Recipe,
    *,
    seed: int,
    progress: Callable[[Iterable[int]], Iterable[int]] = lambda epochs: epochs,
    checkpoint: Path | None = None,
    processes: Processes = ALONE,
) -> ExitSequence:
    """Train a network on cached features.

    With ``recipe.hard_first`` each sample is weighted by the saver's lack of confidence.

    Args:
        features: features whose ``exits`` are the pooled features of the saver, those of every exit, and the saver's
            logits.
        type: see :func:`parse_sequence`.
        seed: seed of the initial weights and of the order of batches.
        checkpoint, processes: as in :func:`dyce_calibration.heads.training.train_heads`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        *stores, _ = features.exits
        network = ExitSequence([store.shape[1] for store in stores], features.logits.shape[1], type)
        unchanged = [(torch.zeros(1), torch.ones(1))] * len(features.exits)
        fit(network, features, unchanged, recipe, progress, checkpoint, processes)
    return network.eval()
