"""The operations of a bundle's program: everything that can run for a sample, in order.

The program contains all networks, exits, heads and branches. A configuration runs the part that it needs, which
:mod:`dyce_runtime.program.liveness` finds.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec


class Feed(msgspec.Struct, frozen=True, tag="feed", tag_field="op"):
    """Read this input for the samples that have not exited yet."""

    input: str


class Run(msgspec.Struct, frozen=True, tag="run", tag_field="op"):
    """Run a piece, which reads and writes named tensors."""

    piece: str


class Case(msgspec.Struct, frozen=True):
    """One case of a choice: it runs a piece, or makes tensors (keys) copies of others (values)."""

    piece: str | None = None
    copies: dict[str, str] = msgspec.field(default_factory=dict)


class Choose(msgspec.Struct, frozen=True, tag="choose", tag_field="op"):
    """Send each sample to case k, where k is the number of cut points strictly below its gate value.

    Every case writes the same tensors, with the same shapes.

    Attributes:
        gate: id of the gate, under which a configuration sets the cut points.
        by: name of the float32 tensor of shape (batch,) with the gate value of each sample.
        cut_points: ascending, one fewer than there are cases; the default if a configuration does not set them.
    """

    gate: str
    by: str
    cases: tuple[Case, ...]
    cut_points: tuple[float, ...]


class Leave(msgspec.Struct, frozen=True, tag="leave", tag_field="op"):
    """Let samples exit with the answer of a head: those whose score is strictly above the threshold, or all.

    Attributes:
        exit: id of the exit.
        head: type of the head.
        always: whether all samples exit, whatever their score.
    """

    exit: str
    head: str
    always: bool = False


Operation: TypeAlias = Feed | Run | Choose | Leave
