"""From a configuration to the pieces that run: resolved once, when the knob is turned."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from dyce_runtime.configuration import Configuration
from dyce_runtime.manifest import Manifest, Piece


@dataclass(frozen=True)
class Step:
    """One stretch of backbone and the decision behind it.

    Attributes:
        body: ids of the pieces that run one after another: spans and segments.
        head: id of the head's piece; None for the last step, whose body ends in the final head.
        threshold: float32; a sample leaves if its confidence is strictly above it.
        exit: index into the manifest's exits.
    """

    body: tuple[str, ...]
    head: str | None
    threshold: np.float32
    exit: int


@dataclass(frozen=True)
class Plan:
    """A configuration, resolved against a bundle. Immutable: sharing it between threads is safe."""

    configuration: Configuration
    steps: tuple[Step, ...]


def make_plan(manifest: Manifest, configuration: Configuration) -> Plan:
    """Resolve a configuration.

    Raises:
        ConfigurationError: it does not fit the bundle.
    """
    configuration.check(manifest)
    steps, first = [], 0
    for index, exit in enumerate(manifest.exits):
        setting = configuration.exits.get(exit.id)
        last_step = index == len(manifest.exits) - 1
        if setting is None and not last_step:
            continue
        body = tuple(piece.id for piece in _cover(manifest.pieces, first, index))
        head = None if setting is None else next(h.piece for h in exit.heads if h.type == setting.head)
        threshold = np.float32(np.inf if setting is None else setting.threshold)
        steps.append(Step(body, head, threshold, index))
        first = index + 1
    return Plan(configuration, tuple(steps))


def pieces_of(plans: Iterable[Plan]) -> list[str]:
    """Ids of all pieces that the plans run, without repetition."""
    ids = [id for plan in plans for step in plan.steps for id in (*step.body, *([step.head] if step.head else []))]
    return list(dict.fromkeys(ids))


def _cover(pieces: tuple[Piece, ...], first: int, last: int) -> list[Piece]:
    """The fewest pieces from segment ``first`` to ``last``, found from the end backwards."""
    rest: dict[int, list[Piece]] = {last + 1: []}
    for start in range(last, first - 1, -1):
        fitting = [p for p in pieces if p.kind != "head" and p.first == start and p.last <= last]
        rest[start] = min(([piece, *rest[piece.last + 1]] for piece in fitting), key=len)
    return rest[first]
