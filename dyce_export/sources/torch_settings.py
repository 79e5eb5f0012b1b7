"""Process-wide settings of torch, which the caller or the code of a model may have changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch


@contextmanager
def usual_settings() -> Iterator[None]:
    """Make torch compute in float32 on the CPU, with gradients available, within the block.

    Afterwards the caller's settings are restored: ``torch.no_grad``, ``inference_mode``, ``autocast``, the default
    dtype, the default device and the precision of matrix products. Can also be used as a decorator.
    """
    dtype, precision = torch.get_default_dtype(), torch.get_float32_matmul_precision()
    other_device = torch.get_default_device().type != "cpu"
    torch.set_default_dtype(torch.float32)
    torch.set_float32_matmul_precision("highest")
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
            torch.device("cpu") if other_device else nullcontext(),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.set_default_dtype(dtype)
