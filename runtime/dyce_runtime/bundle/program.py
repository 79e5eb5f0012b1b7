"""The program of a bundle: everything that can run, in order, for each sample.

The program is maximal: all networks, all exits, all heads. A configuration runs the part of it that it needs, which
:mod:`dyce_runtime.bundle.liveness` finds.
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


class Leave(msgspec.Struct, frozen=True, tag="leave", tag_field="op"):
    """Samples leave with the answer of a head: if their score is strictly above the threshold, or ``always``."""

    exit: str
    head: str
    always: bool = False


Operation: TypeAlias = Feed | Run | Leave
