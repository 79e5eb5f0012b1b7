"""Measure the time or energy that every segment and head takes on this machine, as costs for a search."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

import numpy as np

from dyce_runtime.bundle.configuration import Configuration, ExitSetting
from dyce_runtime.bundle.manifest import CONFIDENCE, FINAL, UNCUT, Piece
from dyce_runtime.execution.contracts import ExecutionContext
from dyce_runtime.execution.routing import run_step
from dyce_runtime.execution.session import Session
from dyce_runtime.execution.trace import whole_program
from dyce_runtime.inputs.images import Images, count_of, rows_of
from dyce_runtime.measure.energy import Meter
from dyce_runtime.program.operations import Feed
from dyce_runtime.program.operations import Run as RunPiece
from dyce_runtime.program.structure import bodies, ends_of, needed_heads

# Stands for the start of the first segment, in the key of a span.
IMAGE = "image"
_WARM_UP_CALLS = 5
_IDLE_SECONDS = 3.0
# Energy is measured on 3 batches, for half a second each, which is long compared with the resolution of the meters: a
# processor's counter is updated every millisecond, a Jetson's sensors are read every ten.
_ENERGY_BATCHES = 3
_ENERGY_SECONDS = 0.5

Run = Callable[[], object]
_log = logging.getLogger("dyce_runtime")


@dataclass(frozen=True)
class PieceCosts:
    """Median cost of one call, all in one unit.

    Attributes:
        segments: exit id, ``final`` last, to the cost of the segment that ends there.
        heads: (exit id, head type) to the cost of the head and of the decision after it. For the head at the end of a
            saver (a network that runs before the base), only the decision: the head is part of the segment.
        uncut: cost of the uncut model.
        spans: (id of the exit after which it starts or ``image``, id of the exit at its end) to the cost of a span. If
            there are savers, the uncut model counts as a span after the last one.
        savers: ids of the exits at which savers end.
        needs: see :func:`dyce_runtime.program.structure.needed_heads`.
    """

    segments: dict[str, float]
    heads: dict[tuple[str, str], float]
    uncut: float
    spans: dict[tuple[str, str], float]
    savers: tuple[str, ...] = ()
    needs: dict[str, dict[str, tuple[tuple[str, str], ...]]] = field(default_factory=dict)


def measure_times(session: Session, batches: Iterable[Images]) -> PieceCosts:
    """Measure the milliseconds of all pieces, in the order in which a call runs them, batch after batch.

    The overhead of the session (routing, results) is measured with every exit on and none taken, and is added to the
    cost of the heads, since without heads there is none.

    Args:
        session: an open session, whose active configuration is restored at the end.
        batches: preprocessed inputs of one size; at least one.

    Raises:
        PieceError: a piece failed.
    """
    return _measure(session, batches, _milliseconds)


def measure_energies(session: Session, batches: Iterable[Images], meter: Meter) -> PieceCosts:
    """Measure the joules of all pieces above those of the idle machine, whose power is measured first, for 3 seconds.

    The meter includes all other processes, so nothing else should run. Only the first three batches are used.

    Args:
        session: an open session, whose active configuration is restored at the end.
        batches: preprocessed inputs of one size; at least one.
        meter: an open meter.

    Raises:
        TargetError: the meter cannot be read.
        PieceError: a piece failed.
    """
    return _measure(session, islice(batches, _ENERGY_BATCHES), partial(joules_of, meter, idle_watts(meter)))


def idle_watts(meter: Meter) -> float:
    """Measure the power of the idle machine in watts, which takes 3 seconds.

    Raises:
        TargetError: the meter cannot be read.
    """
    before, start = meter.joules(), time.perf_counter()
    time.sleep(_IDLE_SECONDS)
    idle = (meter.joules() - before) / (time.perf_counter() - start)
    _log.info("%s: %.2f W when idle", meter.source, idle)
    return idle


def joules_of(meter: Meter, idle: float, run: Run) -> float:
    """Measure the energy of one call above ``idle`` watts, by calling ``run`` for half a second. May be negative.

    Raises:
        TargetError: the meter cannot be read.
    """
    calls, elapsed = 0, 0.0
    before, start = meter.joules(), time.perf_counter()
    while elapsed < _ENERGY_SECONDS:
        run()
        calls, elapsed = calls + 1, time.perf_counter() - start
    return (meter.joules() - before - idle * elapsed) / calls


def at_least_0(what: object, cost: float) -> float:
    """Return a cost, or 0 with a warning if noise made it negative. ``what`` names it in the warning."""
    if cost < 0:
        _log.warning("%s: no energy above that of the idle machine was seen; it counts as 0", what)
    return max(0.0, cost)


def _measure(session: Session, batches: Iterable[Images], cost_of: Callable[[Run], float]) -> PieceCosts:
    manifest = session.manifest
    exits = manifest.exits
    never = {exit.id: ExitSetting(exit.heads[0].type, 1.0) for exit in exits[:-1]}
    found: dict[object, list[float]] = defaultdict(list)
    before = session.configuration
    session.use(Configuration("never", never))
    try:
        for number, batch in enumerate(batches):
            images = rows_of(session.inputs(batch), slice(0, session.device.max_rows))
            for _ in range(_WARM_UP_CALLS if number == 0 else 0):
                for _, run in _walk(session, images):
                    run()
            for key, run in _walk(session, images):
                found[key].append(cost_of(run))
    finally:
        session.use(before)
    cost = {key: at_least_0(key, float(np.median(values))) for key, values in found.items()}
    cost |= {(e.id, h.type): 0.0 for e in exits for h in e.heads if manifest.piece(h.piece).role != "head"}
    walked = sum(cost[exit.id] for exit in exits) + sum(cost[exit, on.head] for exit, on in never.items())
    routing = max(0.0, cost["call"] - walked) / len(exits)
    heads = {(exit.id, head.type): cost[exit.id, head.type] + routing for exit in exits[:-1] for head in exit.heads}
    spans = {ends: cost[span.id] for span, ends in _spans(session)}
    savers = tuple(saver.id for saver in manifest.savers)
    if savers and manifest.uncut == UNCUT:
        spans[savers[-1], FINAL] = cost["uncut"]
    segments = {exit.id: cost[exit.id] for exit in exits}
    return PieceCosts(segments, heads, cost["uncut"], spans, savers, needed_heads(manifest))


def _spans(session: Session) -> Iterator[tuple[Piece, tuple[str, str]]]:
    """Yield the open spans except the uncut model, with the exits between which they run, as in :class:`PieceCosts`."""
    manifest = session.manifest
    ends = dict(zip((exit.id for exit in manifest.exits), (IMAGE, *(exit.id for exit in manifest.exits)), strict=False))
    own = bodies(manifest)
    for span in manifest.spans:
        if span.id != UNCUT and span.id in session.pieces:
            start = next(exit for exit, body in own.items() if body and body[0].id == span.covers[0])
            yield span, (ends[start], ends_of(manifest, span)[1])


def _walk(session: Session, images: Images) -> Iterator[tuple[object, Run]]:
    """Yield every piece, then a whole call and the uncut model. Each must be run before the next one is requested."""
    manifest, inputs = session.manifest, session.inputs(images)
    spans: dict[str, list[Piece]] = defaultdict(list)
    for span, _ in _spans(session):
        spans[span.covers[0]].append(span)
    exit_after = {piece.id: exit for exit, body in bodies(manifest).items() for piece in body}
    of_head = {head.piece: (exit.id, head.type) for exit in manifest.exits for head in exit.heads}
    with session.device.context(count_of(inputs)) as context:
        for operation in whole_program(manifest):
            if isinstance(operation, Feed):
                context.set_input(operation.input, inputs[operation.input])
            elif not isinstance(operation, RunPiece):
                run_step(context, operation)
            elif (piece := manifest.piece(operation.piece)).role == "head":
                yield of_head[piece.id], partial(_run, context, piece)
            else:
                for span in spans.get(piece.id, ()):
                    yield span.id, partial(_run, context, span)
                yield exit_after[piece.id], partial(_run, context, piece)
    yield "call", partial(session, images)
    yield "uncut", partial(session.run_uncut, images)


def _run(context: ExecutionContext, piece: Piece) -> None:
    """Run a piece and wait for it; if it writes an answer, read the confidence as a decision does."""
    context.run(piece.id)
    if piece.answers:
        context.read(CONFIDENCE)
    else:
        context.wait()


def _milliseconds(run: Run) -> float:
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e3
