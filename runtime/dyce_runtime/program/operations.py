"""The program of a bundle: everything that can run, in order, for each sample.

The program is maximal: all networks, all exits, all heads, all branches. A configuration runs the part of it that it
needs, which :mod:`dyce_runtime.program.liveness` finds.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec


class Feed(msgspec.Struct, frozen=True, tag="feed", tag_field="op"):
    """The samples that are still here bring this input."""

    input: str


class Run(msgspec.Struct, frozen=True, tag="run", tag_field="op"):
    """A piece computes its tensors."""

    piece: str


class Case(msgspec.Struct, frozen=True):
    """What one case of a choice does: it runs a piece, or tensors (keys) become copies of others (values)."""

    piece: str | None = None
    copies: dict[str, str] = msgspec.field(default_factory=dict)


class Choose(msgspec.Struct, frozen=True, tag="choose", tag_field="op"):
    """Each sample takes one of the cases: the one with as many cut points strictly below its value.

    Every case defines the same tensors, with the same shapes.

    Attributes:
        gate: its id, by which a configuration sets the cut points.
        by: name of a float32 tensor of shape (batch,) that holds a value for each sample.
        cut_points: ascending, one fewer than there are cases; used where a configuration does not set them.
    """

    gate: str
    by: str
    cases: tuple[Case, ...]
    cut_points: tuple[float, ...]


class Leave(msgspec.Struct, frozen=True, tag="leave", tag_field="op"):
    """Samples leave with the answer of a head: if their score is strictly above the threshold, or ``always``."""

    exit: str
    head: str
    always: bool = False


Operation: TypeAlias = Feed | Run | Choose | Leave
