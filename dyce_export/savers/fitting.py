"""Verify that savers and base compute the same in the composed bundle as in their own, and that routing is right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dyce_export.verification.verify import PROBE
from dyce_runtime.bundle.configuration import Configuration, ExitSetting
from dyce_runtime.bundle.manifest import Manifest
from dyce_runtime.bundle.reader import Bundle
from dyce_runtime.bundle.test_vectors import Vectors
from dyce_runtime.errors import VerificationError
from dyce_runtime.execution.contracts import TargetSpec
from dyce_runtime.execution.session import Session
from dyce_runtime.execution.trace import head_answers
from dyce_runtime.inputs.images import Inputs, rows_of
from dyce_runtime.targets import registry

# Tolerance of confidences: another order of the classes may change the last bits of a softmax.
_SOFTMAX = 1e-6


class _Decision(NamedTuple):
    logits: NDArray[np.float32]
    confidence: float


def probe_of(manifest: Manifest, vectors: Vectors) -> Configuration:
    """Return the configuration in which every exit is on with its first head, at the threshold in the test vectors."""
    thresholds = zip(manifest.exits[:-1], vectors.probe.tolist(), strict=True)
    return Configuration(PROBE, {exit.id: ExitSetting(exit.heads[0].type, t) for exit, t in thresholds})


def check_parts(
    made: Bundle, parts: Sequence[Bundle], orders: Sequence[Sequence[int] | None], vectors: Vectors
) -> None:
    """Compare every head, and the routing, with the models run separately, one test vector per call.

    Heads that none of the parts has are not compared.

    Args:
        made: the composed bundle.
        parts: the bundles of the savers and of the base, in the order in which they run.
        orders: order of the classes of each; see :func:`dyce_export.savers.joint_verification.class_order`.

    Raises:
        VerificationError: logits or an exit differ, or a confidence by more than rounding explains.
    """
    target, spec = registry.reference().name, TargetSpec()
    manifest, probe = made.manifest, probe_of(made.manifest, vectors)
    samples = [rows_of(vectors.inputs, slice(row, row + 1)) for row in range(len(vectors.logits))]
    by_hand: list[list[list[_Decision]]] = [[] for _ in samples]
    for part, network, order in zip(parts, manifest.networks, orders, strict=True):
        with Session(part, target, spec, allow_untrained=True) as alone:
            for inputs, of_sample in zip(samples, by_hand, strict=True):
                own = {part.manifest.input.name: inputs[network.inputs[0].tensor]}
                of_sample += [[_ordered(d, order) for d in of_exit] for of_exit in _decisions(alone, own)]
    with Session(made, target, spec, allow_untrained=True) as session:
        session.use(probe)
        for inputs, expected in zip(samples, by_hand, strict=True):
            _compare(manifest, expected, _decisions(session, inputs))
            index = next(
                index
                for index, exit in enumerate(manifest.exits)
                if exit.id not in probe.exits
                or expected[index][0].confidence > np.float32(probe.exits[exit.id].threshold)
            )
            result = session(inputs)
            if int(result.exit[0]) != index or not np.array_equal(result.logits[0], expected[index][0].logits):
                raise VerificationError(
                    f"verification failed: a sample takes exit {manifest.exits[int(result.exit[0])].id}; run "
                    f"separately, the models take exit {manifest.exits[index].id}, or compute other logits"
                )


def _decisions(session: Session, inputs: Inputs) -> list[list[_Decision]]:
    """Return the decisions of all heads of every exit for one sample."""
    manifest = session.manifest
    said = head_answers(session.device, manifest, inputs)
    found = [[said[exit.id, head.type] for head in exit.heads] for exit in manifest.exits]
    return [[_Decision(one.logits[0], float(one.score[0])) for one in of_exit] for of_exit in found]


def _ordered(decision: _Decision, order: Sequence[int] | None) -> _Decision:
    return decision if order is None else decision._replace(logits=decision.logits[list(order)])


def _compare(manifest: Manifest, expected: list[list[_Decision]], found: list[list[_Decision]]) -> None:
    for exit, before, after in zip(manifest.exits, expected, found, strict=True):
        for one, other in zip(before, after, strict=False):
            near = abs(one.confidence - other.confidence) <= _SOFTMAX
            if not (np.array_equal(one.logits, other.logits) and near):
                raise VerificationError(
                    f"verification failed: exit {exit.id} gives other results than in the bundle that it comes from",
                    hint="The pieces do not compute what they computed there; nothing was written. Please report it.",
                )
