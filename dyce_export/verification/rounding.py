"""Telling rounding from mistakes, by the error of torch's own float32 against float64 at the same places."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import Interpreter
from torch.utils import _pytree as pytree

from dyce_calibration.heads.training import TrainedHead
from dyce_export.graph.backbone import Backbone
from dyce_runtime.bundle.manifest import Verification
from dyce_runtime.bundle.test_vectors import relative_error

SAMPLES = 3
# Two float32 computations, each this far from float64, may differ by twice as much; the rest is a safety factor.
_MARGIN = 4.0


def rounding_errors(backbone: Backbone, heads: Sequence[Sequence[TrainedHead]], images: Tensor) -> dict[str, float]:
    """Measure how far torch's float32 is from float64, with the error measure and names of ``verify``.

    Both run the captured graph, so that rounding is the only difference.

    Args:
        images: (N, C, H, W) float32, N at least 2.
    """
    found, precise = (
        _outputs(backbone, heads, images, run) for run in (backbone.module, InFloat64(backbone.module).run)
    )
    return {name: max(map(relative_error, expected, found[name], expected)) for name, expected in precise.items()}


def _outputs(
    backbone: Backbone, heads: Sequence[Sequence[TrainedHead]], images: Tensor, run: Callable[[Tensor], Any]
) -> dict[str, list[NDArray[Any]]]:
    """Return the outputs that verification compares: at every seam, of every head, and the logits."""
    with torch.inference_mode():
        logits, activations = backbone.activations(images, run)
        outputs = {"logits": [logits.numpy()]}
        for point, of_exit, seam, pooled in zip(
            backbone.points, heads, activations, backbone.pool(activations), strict=True
        ):
            outputs[f"exit {point.number}"] = [tensor.numpy() for tensor in seam]
            for head in of_exit:
                outputs[f"exit {point.number} {head.type}"] = [head.logits(pooled).numpy()]
    return outputs


def explained_by_rounding(verification: Verification, rounding: Mapping[str, float]) -> bool:
    """Return whether rounding can explain every error over the tolerance, given the model's float32 errors."""
    most = max(rounding.values())
    over = {name: error for name, error in verification.seams.items() if not error <= verification.tolerance}
    return bool(over) and all(error <= _MARGIN * rounding.get(name, most) for name, error in over.items())


class InFloat64(Interpreter):
    """Runs a graph of float32 operations in float64, including its weights."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Call an operation with every float32 argument and dtype replaced by float64."""
        args, kwargs = pytree.tree_map(_widened, (args, kwargs))
        return pytree.tree_map(_widened, super().call_function(target, args, kwargs))


def _widened(value: Any) -> Any:
    if value is torch.float32:
        return torch.float64
    return value.double() if isinstance(value, torch.Tensor) and value.dtype == torch.float32 else value
