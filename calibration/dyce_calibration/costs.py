"""Cost tables: what a sample pays for each stretch of backbone and each head, in one unit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Literal

import msgspec

from dyce_runtime.errors import DataError, DestinationError
from dyce_runtime.manifest import FINAL, SCHEMA_VERSION, Manifest
from dyce_runtime.piece_costs import IMAGE, PieceCosts

Unit = Literal["macs", "ms", "joules"]


class CostTable(msgspec.Struct, frozen=True):
    """Costs per sample, as in ``costs.json``; where they were measured, of a call of ``measured["batch"]`` samples.

    Attributes:
        unit: of every number here.
        backbone: exit id, in execution order, to the cost from the image to that exit, heads apart; ``final`` is
            the whole chain of segments.
        heads: exit id and head type to the cost of that head.
        full: of the uncut model; measured in time it may be less than the chain.
        worth_moving, best_batch: see :class:`dyce_runtime.configuration.Configurations`.
        spans: exit id behind which a span starts (``image`` before the first) and exit id at its end to its cost.
        model: sha256 of the manifest of the bundle it belongs to; empty if it belongs to none.
        measured: where and with what it was measured; empty for multiply-accumulates.
    """

    unit: Unit
    backbone: dict[str, float]
    heads: dict[str, dict[str, float]]
    full: float
    model: str = ""
    measured: dict[str, str] = msgspec.field(default_factory=dict)
    spans: dict[str, dict[str, float]] = msgspec.field(default_factory=dict)
    worth_moving: dict[str, int] = msgspec.field(default_factory=dict)
    best_batch: int = 0
    schema_version: str = SCHEMA_VERSION

    def check(self) -> CostTable:
        """Return the table. Raises DataError if a cost is missing, negative or falls along the backbone."""
        if list(self.backbone)[-1:] != [FINAL]:
            raise DataError(f"the cost table ends in {list(self.backbone)[-1:]}; expected the exit {FINAL!r} last")
        before = 0.0
        for exit, cost in self.backbone.items():
            if not (math.isfinite(cost) and cost >= before):
                raise DataError(
                    f"the backbone costs {cost} {self.unit} up to exit {exit}; expected a number of at least {before}, "
                    "the cost up to the exit before it"
                )
            before = cost
        for exit, types in self.heads.items():
            for type, cost in types.items():
                if not (math.isfinite(cost) and cost >= 0):
                    raise DataError(f"head {type} at exit {exit} costs {cost} {self.unit}; expected 0 or more")
        if not (math.isfinite(self.full) and self.full > 0):
            raise DataError(f"the full model costs {self.full} {self.unit}; expected more than 0")
        self._check_spans()
        return self

    def _check_spans(self) -> None:
        places = [IMAGE, *self.backbone]
        for start, ends in self.spans.items():
            for end, cost in ends.items():
                if start not in places or end not in places[places.index(start) + 1 :]:
                    raise DataError(f"the cost table has a span from {start} to {end}; expected exits of the backbone")
                if not (math.isfinite(cost) and cost >= 0):
                    raise DataError(f"the span from {start} to {end} costs {cost} {self.unit}; expected 0 or more")

    def with_all_spans(self) -> CostTable:
        """What would be paid if all segments between two exits that are on ran as one span, about.

        The whole backbone then costs what the uncut model costs. What cutting adds is shared out equally among
        the exits and falls away with their heads.
        """
        chain, cuts = self.backbone[FINAL], len(self.backbone) - 1
        if chain <= self.full or not cuts:
            return msgspec.structs.replace(self, spans={})
        seam, share = (chain - self.full) / cuts, self.full / chain
        return msgspec.structs.replace(
            self,
            backbone={exit: cost * share for exit, cost in self.backbone.items()},
            heads={exit: {type: c + seam for type, c in types.items()} for exit, types in self.heads.items()},
            spans={},
        )


def macs_of(manifest: Manifest) -> CostTable:
    """The cost table of a bundle in multiply-accumulates."""
    segments = [piece.macs for piece in manifest.pieces if piece.kind == "segment"]
    backbone = {exit.id: float(sum(segments[: index + 1])) for index, exit in enumerate(manifest.exits)}
    heads = {e.id: {h.type: float(manifest.piece(h.piece).macs) for h in e.heads} for e in manifest.exits if e.heads}
    return CostTable("macs", backbone, heads, full=float(sum(segments)))


def costs_of(pieces: PieceCosts, unit: Unit, model: str, measured: Mapping[str, str]) -> CostTable:
    """The cost table of what was measured on one machine.

    Args:
        unit: of ``pieces``.
        model: fingerprint of the bundle.
        measured: the machine and the versions.

    Raises:
        DataError: the numbers cannot be costs, such as an uncut model that draws nothing.
    """
    backbone = dict(zip(pieces.segments, accumulate(pieces.segments.values()), strict=True))
    heads: dict[str, dict[str, float]] = {}
    for (exit, type), cost in pieces.heads.items():
        heads.setdefault(exit, {})[type] = cost
    spans: dict[str, dict[str, float]] = {}
    for (start, end), cost in pieces.spans.items():
        spans.setdefault(start, {})[end] = cost
    return CostTable(unit, backbone, heads, pieces.uncut, model, dict(measured), spans).check()


def write_costs(costs: CostTable, path: Path) -> None:
    """Write a cost table. Raises DestinationError if the file cannot be written."""
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(costs), indent=2) + b"\n")
    except OSError as error:
        raise DestinationError(f"{path} cannot be written: {error.strerror}") from error


def read_costs(path: Path) -> CostTable:
    """Read a cost table. Raises DataError if the file is not one or its numbers cannot be costs."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=CostTable).check()
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} does not hold a cost table: {error}",
            hint="`dyce bench BUNDLE --data PICTURES --write-cost-table FILE` makes one.",
        ) from error
