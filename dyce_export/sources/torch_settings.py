"""Settings of torch that hold for a whole process, which the caller or the file of a model may have changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch


@contextmanager
def usual_settings() -> Iterator[None]:
    """While a block runs, let torch compute in float32 on the CPU, with gradients where they are asked for.

    What stood there is put back: ``torch.no_grad``, ``inference_mode`` and ``autocast`` around a call, the default
    dtype, the default device and the precision of matrix products. Serves as a decorator, too.
    """
    dtype, precision = torch.get_default_dtype(), torch.get_float32_matmul_precision()
    elsewhere = torch.get_default_device().type != "cpu"
    torch.set_default_dtype(torch.float32)
    torch.set_float32_matmul_precision("highest")
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
            torch.device("cpu") if elsewhere else nullcontext(),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.set_default_dtype(dtype)
