"""Verification: the pieces on disk against torch, at every seam, at the logits and in the exits taken.

Errors are relative to what depends on the input: max |a - b| / max |a - mean of a over the samples|, where a is
torch's value. A constant that dwarfs the signal therefore hides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dyce_calibration.heads import TrainedHead
from dyce_calibration.temperature import softmax
from dyce_export.backbone import Backbone
from dyce_runtime import targets
from dyce_runtime.bundle import Bundle
from dyce_runtime.configuration import Configuration, ExitSetting, float32_midpoint
from dyce_runtime.contracts import Device, Lane, TargetSpec
from dyce_runtime.manifest import FINAL, Manifest, Verification
from dyce_runtime.plan import Plan, make_plan
from dyce_runtime.session import Session
from dyce_runtime.vectors import relative_error
from dyce_runtime.walk import walk

Floats = NDArray[np.float32]

TOLERANCE = 1e-4
PROBE = "probe"
# Confidences closer to a threshold than this may fall on either side of it.
EXEMPT_WITHIN = 1e-5
_MOST_EXEMPT = 0.01
_BATCHES = (1, 3)
_SEAM_SAMPLES = 8


@dataclass(frozen=True)
class Reference:
    """What torch computes for the probe images.

    Attributes:
        images: (N, C, H, W).
        logits: (N, classes), of the model as it was handed over.
        seams: for every exit, its activations for the first eight images.
        head_logits: for every exit and each of its heads, (N, classes).
        confidences: for every exit, (N,) of its first head.
    """

    images: Floats
    logits: Floats
    seams: list[list[Floats]]
    head_logits: list[list[Floats]]
    confidences: list[Floats]


def compute_reference(
    model: Callable[[Tensor], Tensor],
    backbone: Backbone,
    heads: Sequence[Sequence[TrainedHead]],
    images: Tensor,
) -> Reference:
    """Run the original model, the captured backbone and the heads in torch, in batches of eight."""
    logits, seams = [], None
    of_heads: list[list[list[Floats]]] = [[[] for _ in of_exit] for of_exit in heads]
    with torch.inference_mode():
        for start in range(0, len(images), _SEAM_SAMPLES):
            batch = images[start : start + _SEAM_SAMPLES]
            logits.append(model(batch).numpy())
            _, activations = backbone.activations(batch)
            for of_exit, parts, pooled in zip(heads, of_heads, backbone.pool(activations), strict=True):
                for head, part in zip(of_exit, parts, strict=True):
                    part.append(head.logits(pooled).numpy())
            if seams is None:
                seams = [[tensor.numpy() for tensor in tensors] for tensors in activations]
    joined = [[np.concatenate(part) for part in parts] for parts in of_heads]
    confidences = [
        softmax(parts[0], of_exit[0].temperature).max(axis=1) for parts, of_exit in zip(joined, heads, strict=True)
    ]
    return Reference(images.numpy(), np.concatenate(logits), seams or [], joined, confidences)


def probe_configuration(manifest: Manifest, reference: Reference) -> Configuration:
    """Every exit on with its first head, at the median confidence of that: about half of the samples leave at each."""
    exits = {
        exit.id: ExitSetting(exit.heads[0].type, median_gap(confidences))
        for exit, confidences in zip(manifest.exits, reference.confidences, strict=False)
    }
    return Configuration(PROBE, exits)


def verify(bundle: Bundle, reference: Reference, probe: Configuration, tolerance: float = TOLERANCE) -> Verification:
    """Compare a bundle on disk with torch, at batch sizes 1 and 3, and by the exits that its session takes."""
    target, spec = targets.find(), TargetSpec()
    device = target.open(bundle.piece_specs([piece.id for piece in bundle.manifest.pieces]), spec)
    errors: dict[str, float] = {}
    for batch in _BATCHES:
        for name, error in _seam_errors(bundle.manifest, device, reference, batch).items():
            errors[name] = max(error, errors.get(name, 0.0))
    device.close()
    with Session(bundle, target.name, spec, allow_untrained=True) as session:
        session.use(probe)
        agreement, exempt, errors["routed"] = _exit_agreement(session, reference, make_plan(bundle.manifest, probe))
    control = _control(reference.logits)
    verdict = {
        "tolerance": tolerance,
        "max_relative_error": max(errors.values()),
        "seams": errors,
        "control": control,
        "exit_agreement": agreement,
        "exempt": exempt,
        "samples": len(reference.images),
    }
    reason = _inconclusive(control, tolerance, exempt, len(reference.images))
    if reason:
        return Verification(verdict="inconclusive", reason=reason, **verdict)  # type: ignore[arg-type]
    reason = _failure(errors, tolerance, agreement)
    return Verification(verdict="failed" if reason else "passed", reason=reason, **verdict)  # type: ignore[arg-type]


def _seam_errors(manifest: Manifest, device: Device, reference: Reference, batch: int) -> dict[str, float]:
    """Chain the segments and run every head on the way; then every span behind the segments before it."""
    errors: dict[str, float] = {}

    def note(name: str, expected: Floats, found: Floats) -> None:
        errors[name] = max(relative_error(expected[:batch], found, expected), errors.get(name, 0.0))

    def compare(name: str, lane: Lane, end: int) -> None:
        """What is live behind the segment ``end``."""
        if end == len(reference.seams):
            lane.decide()
            note(name, reference.logits, lane.answers()[0])
        else:
            for expected, found in zip(reference.seams[end], lane.live(), strict=True):
                note(name, expected, found)

    with device.lane(batch) as lane:
        for index, exit in walk(manifest, lane, {manifest.input.name: reference.images[:batch]}):
            compare("logits" if exit.id == FINAL else f"exit {exit.id}", lane, index)
            for number, head in enumerate(exit.heads):
                lane.decide(head.piece)
                note(f"exit {exit.id} {head.type}", reference.head_logits[index][number], lane.answers()[0])
    for span in (piece for piece in manifest.pieces if piece.kind == "span"):
        with device.lane(batch) as lane:
            lane.put(reference.images[:batch], manifest.input.name)
            for segment in manifest.segments[: span.first]:
                lane.run(segment.id)
            lane.run(span.id)
            compare(span.id, lane, span.last)
    return errors


def _exit_agreement(session: Session, reference: Reference, plan: Plan) -> tuple[float, int, float]:
    """Share of equal exits, samples exempt, and the error of the routed logits where the exits are equal."""
    count = len(reference.images)
    batches = [session(reference.images[i : i + _SEAM_SAMPLES]) for i in range(0, count, _SEAM_SAMPLES)]
    exits = np.concatenate([result.exit for result in batches])
    logits = np.concatenate([result.logits for result in batches])
    expected = np.full(count, plan.steps[-1].exit)
    near = np.zeros(count, np.bool_)
    waiting = np.ones(count, np.bool_)
    for step in plan.steps[:-1]:
        confidence = reference.confidences[step.exit]
        near |= waiting & (np.abs(confidence - step.threshold) <= EXEMPT_WITHIN)
        leave = waiting & (confidence > step.threshold)
        expected[leave] = step.exit
        waiting &= ~leave
    equal = exits == expected
    routed = 0.0
    for index, of_exit in enumerate([*(first for first, *_ in reference.head_logits), reference.logits]):
        rows = equal & (exits == index)
        if rows.any():
            routed = max(routed, relative_error(of_exit[rows], logits[rows], of_exit))
    return float(equal[~near].mean()) if not near.all() else 0.0, int(near.sum()), routed


def median_gap(confidences: Floats) -> float:
    """The threshold in the gap nearest to the median that is wide enough to tell which side a sample is on."""
    values = np.sort(confidences)
    wide = np.flatnonzero(np.diff(values) > 2.5 * EXEMPT_WITHIN)
    if len(wide) == 0:
        return float(np.median(values))
    index = wide[np.abs(wide + 1 - len(values) / 2).argmin()]
    return float32_midpoint(values[index], values[index + 1])


def _control(logits: Floats) -> float:
    """How much the logits of two different inputs differ, relative to their scale; the largest over pairs."""
    return float(np.abs(logits[1:] - logits[:-1]).max() / max(np.abs(logits).max(), np.finfo(np.float32).tiny))


def _inconclusive(control: float, tolerance: float, exempt: int, samples: int) -> str:
    if not control >= 10 * tolerance:
        return (
            f"the logits hardly depend on the input: two different inputs differ by {control:.1e} of their scale, "
            f"at least {10 * tolerance:.0e} is needed to compare anything"
        )
    if exempt > _MOST_EXEMPT * samples:
        return f"{exempt} of {samples} samples are too close to a probe threshold to be compared"
    return ""


def _failure(errors: dict[str, float], tolerance: float, agreement: float) -> str:
    for name, error in errors.items():
        if not error <= tolerance:
            return f"the relative error at {name} is {error:.1e}; at most {tolerance:.0e} is allowed"
    if agreement < 1:
        return f"{1 - agreement:.1%} of the samples leave at another exit than in torch"
    return ""
