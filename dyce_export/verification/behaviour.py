"""Check that an answer depends on the image alone: not on chance, earlier images, or other images in its batch.

This is found by running the model; if the captured graph shows it too, the message names the place.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Interpreter, Node

from dyce_export.graph.capture import NORM_HINT, input_node
from dyce_export.sources.places import place_of_node, shortened
from dyce_export.verification.rounding import InFloat64
from dyce_runtime.errors import CaptureError, ModelError

# Relative to the largest logit. Batches of one size run the same kernels, so larger differences are not rounding.
_SAME = 1e-5
# The captured graph may round differently from the model; verification is stricter where rounding permits.
_ALIKE = 1e-2
# In a model that amplifies rounding, two float32 results may differ by this many times the error against float64.
_MARGIN = 4.0


Model = Callable[[Tensor], Tensor]


@torch.no_grad()
def check_behaviour(model: Model, program: ExportedProgram, images: Tensor) -> None:
    """Raise unless a model's answer depends on the image alone and equals that of its captured program.

    Args:
        model: maps images (N, C, H, W) to logits (N, classes).
        program: the program captured from it.
        images: float32 (3, C, H, W), all different.

    Raises:
        ModelError: the model's weights or answers are not finite.
        CaptureError: the answers depend on something else, or the captured program's answers differ; the message says
            on what, and where in the model.
    """
    pair, other = images[:2], torch.cat([images[:1], images[2:3]])
    first = _seeded(model, pair, 0)
    if not bool(first.isfinite().all()):
        raise ModelError(_not_finite(program), hint="Export a checkpoint from before the training diverged.")
    check_steady(model, pair)
    beside = _seeded(model, other, 0)
    if _differ(first[:1], beside[:1]):
        raise _neighbour_error(program, pair, other, _difference(first[:1], beside[:1]))
    graph = program.module(check_guards=False)
    captured = _without_excluded(graph(pair))
    difference, tolerance = _difference(first, captured), _ALIKE
    if max(difference, _difference_alone(model, pair)) > _ALIKE:
        tolerance = max(_ALIKE, _MARGIN * _difference(_without_excluded(InFloat64(graph).run(pair).float()), captured))
    check_alone(model, pair, tolerance)
    if not difference <= tolerance:
        raise CaptureError(
            f"the graph captured from the model gives other answers than the model, by {difference:.1e} of the largest "
            "logit: its forward does something else while it is captured",
            hint="Look for torch.compiler.is_compiling(), hooks, and values that leave torch (numpy, .item(), .data).",
        )


@torch.no_grad()
def check_steady(model: Model, images: Tensor) -> None:
    """Raise CaptureError if a model's answers for the same images differ between two runs."""
    first, again = _seeded(model, images, 0), _seeded(model, images, 1)
    if _differ(first, again):
        raise _instability_error(
            random=not _differ(first, _seeded(model, images, 0)), difference=_difference(first, again)
        )


@torch.no_grad()
def check_alone(model: Model, images: Tensor, tolerance: float) -> None:
    """Raise CaptureError if an image's answer differs by more than ``tolerance`` between ``images`` and a batch of one.

    The difference may be rounding; call this only where rounding is known to be within the tolerance.
    """
    difference = _difference_alone(model, images)
    if not difference <= tolerance:
        raise CaptureError(
            f"a picture's answer depends on the size of its batch: alone it differs by {difference:.1e} of the largest "
            f"logit from what it is among {len(images)}",
            hint="Look for branches on x.shape[0], and for norms over the batch.",
        )


def _seeded(model: Model, images: Tensor, seed: int) -> Tensor:
    with _random_numbers(seed):
        return _without_excluded(model(images))


def _without_excluded(logits: Tensor) -> Tensor:
    """Return logits with 0 in place of -inf, by which a model excludes classes."""
    return logits.masked_fill(logits.isneginf(), 0)


@contextmanager
def _random_numbers(seed: int) -> Iterator[None]:
    """Seed the random numbers of Python, NumPy and torch within the block, and restore their states afterwards."""
    python, arrays = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)


def _difference(expected: Tensor, found: Tensor) -> float:
    scale = max(float(expected.abs().max()), torch.finfo(torch.float32).tiny)
    return float((expected - found).abs().max()) / scale


def _differ(expected: Tensor, found: Tensor) -> bool:
    return not _difference(expected, found) <= _SAME


def _difference_alone(model: Model, images: Tensor) -> float:
    return _difference(
        _without_excluded(model(images)), _without_excluded(torch.cat([model(image[None]) for image in images]))
    )


def _instability_error(*, random: bool, difference: float) -> CaptureError:
    found = f"two runs on the same input differ by {difference:.1e} of the largest logit"
    if random:
        return CaptureError(
            f"the model's answers are random: {found}; expected the same answer for the same input",
            hint="Draw random numbers in training only: if self.training: ...",
        )
    return CaptureError(
        f"the model's answers change from run to run: {found}. Its forward keeps a state, or draws random numbers that "
        "no seed sets",
        hint="The same picture has to get the same answer, whatever came before it.",
    )


def _neighbour_error(program: ExportedProgram, pair: Tensor, other: Tensor, difference: float) -> CaptureError:
    node = _first_that_differs(program, pair, other)
    where = f", first in {place_of_node(node)}" if node is not None else ""
    norm = node is None or "norm" in str(node.target)
    return CaptureError(
        f"a picture's answer depends on the other pictures of its batch{where}: with another neighbour it differs by "
        f"{difference:.1e} of the largest logit",
        hint=NORM_HINT if norm else "Nothing may be computed over the first axis.",
    )


def _first_that_differs(program: ExportedProgram, pair: Tensor, other: Tensor) -> Node | None:
    """Return the first operation whose rows for the first image differ between two batches."""
    module = program.module(check_guards=False)
    batch = input_node(program).meta["val"].shape[0]
    rows = [_Rows(module, str(batch)) for _ in range(2)]
    for run, images in zip(rows, (pair, other), strict=True):
        run.run(images)
    for node, row in rows[0].found.items():
        if _differ(row, rows[1].found[node]):
            return node
    return None


class _Rows(Interpreter):
    """Keeps the rows of the first image from every float tensor that has one batch axis."""

    def __init__(self, module: torch.fx.GraphModule, batch: str) -> None:
        super().__init__(module)
        self.batch = batch
        self.found: dict[Node, Tensor] = {}

    def run_node(self, n: Node) -> Any:
        value = result = super().run_node(n)
        described = n.meta.get("val")
        if isinstance(value, tuple) and isinstance(described, tuple) and value:
            value, described = value[0], described[0]
        if isinstance(value, Tensor) and isinstance(described, Tensor) and value.is_floating_point():
            axes = [axis for axis, size in enumerate(described.shape) if str(size) == self.batch]
            if len(axes) == 1 and n.op == "call_function":
                self.found[n] = value.select(axes[0], 0).clone()
        return result


def _not_finite(program: ExportedProgram) -> str:
    for name, tensor in program.state_dict.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            count = int((~tensor.isfinite()).sum())
            return shortened(f"the model answers NaN or infinity: {count} of the {tensor.numel()} values of {name} are")
    return "the model answers NaN or infinity on ordinary pictures, though its weights are finite"
