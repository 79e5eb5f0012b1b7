"""Inputs for verification, and making a randomly initialised model react to them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dyce_export.sources.answers import answer

MOST_PROBES = 32
FEWEST_PROBES = 8
# Verification runs every probe through torch and through the pieces, so large models get fewer probes.
_MACS_BUDGET = 100_000_000_000
_NEAR_ZERO = 0.15


def probe_count(macs: int) -> int:
    """Return the number of probes for a model with ``macs`` MACs per sample: 32, down to 8 for very large models."""
    return min(MOST_PROBES, max(FEWEST_PROBES, _MACS_BUDGET // max(macs, 1)))


def synthetic_images(count: int, input_size: tuple[int, int, int], *, seed: int = 0) -> Tensor:
    """Return images (count, C, H, W) float32 for use without data: blobs of several sizes, noise, random contrast."""
    generator = torch.Generator().manual_seed(seed)
    channels, height, width = input_size
    images = torch.zeros(count, channels, height, width)
    for cells in (2, 5, 12):
        coarse = torch.randn(count, channels, cells, cells, generator=generator)
        images += F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
    images += 0.3 * torch.randn(count, channels, height, width, generator=generator)
    return images * (0.3 + torch.rand(count, 1, 1, 1, generator=generator))


def condition(module: nn.Module, images: Tensor) -> None:
    """Make a randomly initialised model react to its input, in place; its outputs stay meaningless.

    Fresh batch norms hardly scale, and many models start with branches and classifiers at zero or close to it
    (zero-initialised norms, layer scale of 1e-5): their logits are nearly constant, and comparing them would show
    nothing. Such parameters are drawn at random, then one forward pass sets the statistics of the batch norms. Only the
    batch norms are in training mode meanwhile, since other modules behave differently in it, or fail.

    Raises:
        CaptureError: the model fails on the images.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for name, parameter in module.named_parameters():
            _randomise(name, parameter)
        norms = [
            m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats
        ]
        if not norms:
            return
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        answer(module, images)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()


def _randomise(name: str, parameter: Tensor) -> None:
    """Draw a parameter at random if all its values are one number close to zero; biases are left alone."""
    value = float(parameter.flatten()[0]) if parameter.numel() else 1.0
    if abs(value) >= _NEAR_ZERO or name.endswith("bias") or not bool((parameter == value).all()):
        return
    if value == 0 and parameter.ndim >= 2:
        nn.init.trunc_normal_(parameter, std=0.02)
    else:  # a factor: layer scale, the weight of a norm
        nn.init.uniform_(parameter, 0.5, 1.5)
