"""Cost tables: the cost of the backbone up to each exit, of each head and of each span, in one unit."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Literal

import msgspec

from dyce_runtime.bundle.configuration import Configurations
from dyce_runtime.bundle.manifest import FINAL, Manifest
from dyce_runtime.errors import DataError, DestinationError
from dyce_runtime.json_files import read_json
from dyce_runtime.measure.piece_costs import IMAGE, PieceCosts
from dyce_runtime.program.liveness import head_macs
from dyce_runtime.program.structure import bodies, needed_heads

log = logging.getLogger("dyce_calibration")

Unit = Literal["macs", "ms", "joules"]
MACS: Unit = "macs"
# Version of the format of cost table files.
COSTS_VERSION = "1.0"


class CostTable(msgspec.Struct, frozen=True):
    """The costs of a bundle's pieces for one sample or, if they were measured, for ``measured["batch"]`` samples.

    Attributes:
        unit: unit of all costs.
        backbone: exit id, in execution order, to the cost of all segments up to that exit, without heads. ``final`` is
            the whole chain of segments, including savers (small networks that run before the base).
        heads: exit id to head type to the cost of that head.
        full: cost of the uncut model, that is the base before it was cut. Measured times may be less than the chain's.
        model: fingerprint (sha256) of the bundle's manifest; empty if the table belongs to no bundle.
        measured: names and values that describe the measurement; empty for multiply-accumulates.
        spans: id of the exit after which a span starts (``image`` for the beginning) to the id of the exit at its end
            to its cost.
        savers: ids of the exits at which savers end. The next network starts from an image again. A saver costs only
            what leads to the last of its exits that is on.
        needs: exit id to head type to the (exit id, head type) of each earlier head whose output that head reads.
            These are paid for even if they are off.
    """

    unit: Unit
    backbone: dict[str, float]
    heads: dict[str, dict[str, float]]
    full: float
    model: str = ""
    measured: dict[str, str] = msgspec.field(default_factory=dict)
    spans: dict[str, dict[str, float]] = msgspec.field(default_factory=dict)
    savers: tuple[str, ...] = ()
    needs: dict[str, dict[str, tuple[tuple[str, str], ...]]] = msgspec.field(default_factory=dict)
    schema_version: str = COSTS_VERSION

    def check(self) -> CostTable:
        """Return the table. Raises DataError if it is inconsistent, or if a cost is negative or not a finite number."""
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
        self._check_needs()
        if [exit for exit in self.backbone if exit in self.savers] != list(self.savers) or FINAL in self.savers:
            raise DataError(f"the cost table has savers that end at {list(self.savers)}; expected exits, in order")
        return self

    def _check_spans(self) -> None:
        places = [IMAGE, *self.backbone]
        for start, ends in self.spans.items():
            for end, cost in ends.items():
                if start not in places or end not in places[places.index(start) + 1 :]:
                    raise DataError(f"the cost table has a span from {start} to {end}; expected exits of the backbone")
                if not (math.isfinite(cost) and cost >= 0):
                    raise DataError(f"the span from {start} to {end} costs {cost} {self.unit}; expected 0 or more")

    def _check_needs(self) -> None:
        places = list(self.backbone)
        for exit, types in self.needs.items():
            for type, before in types.items():
                for other, needed in before:
                    known = {exit, other} <= {*places} and needed in self.heads.get(other, {})
                    if not known or places.index(other) >= places.index(exit):
                        raise DataError(
                            f"head {type} at exit {exit} needs {needed} at {other}, which is not an earlier head"
                        )

    def with_all_spans(self) -> CostTable:
        """Return an estimate of the table as if the segments between exits that are on always ran as one span.

        The whole backbone of the base is scaled to the cost of the uncut model. The overhead of cutting is divided
        equally among the exits and added to their heads, so that it is saved if an exit is off.
        """
        exits = list(self.backbone)
        base = exits[exits.index(self.savers[-1]) + 1 :] if self.savers else exits
        before = self.backbone[self.savers[-1]] if self.savers else 0.0
        chain, cuts = self.backbone[FINAL] - before, len(base) - 1
        if chain <= self.full or not cuts:
            return msgspec.structs.replace(self, spans={})
        seam, share = (chain - self.full) / cuts, self.full / chain
        backbone = {exit: before + (self.backbone[exit] - before) * share for exit in base}
        heads = {exit: {type: c + seam for type, c in self.heads[exit].items()} for exit in base if exit in self.heads}
        return msgspec.structs.replace(
            self, backbone={**self.backbone, **backbone}, heads={**self.heads, **heads}, spans={}
        )


def macs_of(manifest: Manifest) -> CostTable:
    """Return the cost table of a bundle in multiply-accumulates."""
    own = {exit: sum(piece.macs for piece in body) for exit, body in bodies(manifest).items()}
    backbone = dict(zip(own, map(float, accumulate(own.values())), strict=True))
    heads = {e.id: {h.type: float(head_macs(manifest, h)) for h in e.heads} for e in manifest.exits[:-1]}
    full, savers = float(sum(own[exit] for exit in manifest.base.exits)), tuple(saver.id for saver in manifest.savers)
    return CostTable("macs", backbone, heads, full, savers=savers, needs=needed_heads(manifest))


def macs_again(manifest: Manifest, before: Configurations) -> CostTable:
    """Return :func:`macs_of` for new pieces, which were not measured yet; warn if ``before`` used another unit."""
    if before.unit != MACS:
        log.warning(
            "the configurations were chosen by %s; those of the new pieces are chosen by multiply-accumulates, until "
            "`dyce search --costs` chooses them by a cost table",
            before.unit,
        )
    return macs_of(manifest)


def costs_of(pieces: PieceCosts, unit: Unit, model: str, measured: Mapping[str, str]) -> CostTable:
    """Return the cost table of costs that were measured on one machine.

    Args:
        unit: unit of ``pieces``.
        model: fingerprint of the bundle.
        measured: names and values that describe the measurement, such as the machine and versions.

    Raises:
        DataError: the numbers cannot be costs, such as an uncut model that uses no energy.
    """
    backbone = dict(zip(pieces.segments, accumulate(pieces.segments.values()), strict=True))
    heads: dict[str, dict[str, float]] = {}
    for (exit, type), cost in pieces.heads.items():
        heads.setdefault(exit, {})[type] = cost
    spans: dict[str, dict[str, float]] = {}
    for (start, end), cost in pieces.spans.items():
        spans.setdefault(start, {})[end] = cost
    further = {"savers": pieces.savers, "needs": pieces.needs}
    return CostTable(unit, backbone, heads, pieces.uncut, model, dict(measured), spans, **further).check()  # type: ignore[arg-type]


def write_costs(costs: CostTable, path: Path) -> None:
    """Write a cost table. Raises DestinationError if the file cannot be written."""
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(costs), indent=2) + b"\n")
    except OSError as error:
        raise DestinationError(f"{path} cannot be written: {error.strerror}") from error


def read_costs(path: Path) -> CostTable:
    """Read a cost table. Raises DataError if the file is not one or its numbers cannot be costs."""
    try:
        return read_json(path, CostTable).check()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise DataError(
            f"{path} does not hold a cost table: {error}",
            hint="`dyce bench BUNDLE --data PICTURES --write-cost-table FILE` makes one.",
        ) from error
