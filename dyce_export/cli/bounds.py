"""Bounds of numeric options, checked when they are parsed, with the reason in the error message."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import typer

_Number = TypeVar("_Number", int, float)


def within(least: _Number, most: _Number, reason: str) -> Callable[[_Number | None], _Number | None]:
    """Return an option callback that accepts numbers from ``least`` to ``most`` and rejects all others, and NaN."""

    def check(value: _Number | None) -> _Number | None:
        if value is not None and not least <= value <= most:
            raise typer.BadParameter(f"{value} is not from {least:,} to {most:,}: {reason}")
        return value

    return check


# An engine starts all of its threads at once, and no CPU that it could run on has more cores.
threads = within(1, 1024, "an engine starts all of them at once")
# 1,024 pictures of 224 x 224 pixels are 0.6 GB, before anything is computed from them.
LARGEST_BATCH = 1024
batch = within(1, LARGEST_BATCH, "a batch is in memory at once, with all that is computed from it")
# A front of a thousand configurations is finer than the samples that it is measured on.
points = within(1, 100_000, "each weight is a search of its own")
epochs = within(1, 10_000, "each epoch goes over all of the data")
# A bundle stores it in 64 bits.
seed = within(0, 2**63 - 1, "it is a number of 63 bits")
tolerance = within(0.0, 1.0, "it is an error relative to how far the values vary")
share = within(0.0, 1.0, "it is a share of all samples")
