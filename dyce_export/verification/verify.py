"""Verification: compare the pieces on disk with torch, at every seam, at the logits and in the exits taken.

Errors are relative to the part of a value that depends on the input: max |a - b| / max |a - mean of a over the
samples|, where a is torch's value. Thus a large constant cannot hide an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor

from dyce_calibration.heads.temperature import softmax
from dyce_calibration.heads.training import TrainedHead
from dyce_export.graph.backbone import Backbone
from dyce_export.graph.exit_points import ExitPoint
from dyce_export.graph.onnx_graphs import fits_in_one_file
from dyce_export.sources.places import reason_of
from dyce_export.verification.probe_thresholds import NONE_LEAVE, all_leave, doubts, threshold_between
from dyce_export.verification.verdict import control_of, failure, inconclusive
from dyce_runtime.bundle.configuration import Configuration, ExitSetting
from dyce_runtime.bundle.manifest import FINAL, LOGITS, Manifest, Piece, Verification
from dyce_runtime.bundle.reader import Bundle
from dyce_runtime.bundle.test_vectors import relative_error
from dyce_runtime.errors import BundleError, CaptureError, ExitPointError
from dyce_runtime.execution.contracts import Device, Target, TargetSpec
from dyce_runtime.execution.session import Session
from dyce_runtime.execution.trace import trace, whole_program
from dyce_runtime.program.operations import Feed, Run
from dyce_runtime.program.structure import bodies, ends_of, segments_of
from dyce_runtime.targets import registry

Floats = NDArray[np.float32]

TOLERANCE = 1e-4
PROBE = "probe"
_BATCHES = (1, 3)
_SEAM_SAMPLES = 8
_MARGIN = 4.0


@dataclass(frozen=True)
class Reference:
    """What torch computes for the probe images.

    Attributes:
        images: (N, C, H, W).
        logits: (N, classes), of the original model.
        seams: for every exit, its activations for the first eight images.
        head_logits: for every exit and each of its heads, (N, classes).
        confidences: for every exit, the confidences (N,) of its first head.
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
    """Run the original model, the captured backbone and the heads in torch, in batches of eight.

    Raises:
        ExitPointError: an activation at an exit is not finite, so no head can read it.
    """
    logits, seams = [], None
    of_heads: list[list[list[Floats]]] = [[[] for _ in of_exit] for of_exit in heads]
    with torch.inference_mode():
        for start in range(0, len(images), _SEAM_SAMPLES):
            batch = images[start : start + _SEAM_SAMPLES]
            logits.append(model(batch).numpy())
            _, activations = backbone.activations(batch)
            for point, of_exit, parts, pooled in zip(
                backbone.points, heads, of_heads, backbone.pool(activations), strict=True
            ):
                _check_numbers(point, pooled)
                for head, part in zip(of_exit, parts, strict=True):
                    part.append(head.logits(pooled).numpy())
            if seams is None:
                seams = [[tensor.numpy() for tensor in tensors] for tensors in activations]
    joined = [[np.concatenate(part) for part in parts] for parts in of_heads]
    confidences = [
        # NaN exceeds no threshold; 0 does the same.
        np.nan_to_num(softmax(parts[0], of_exit[0].temperature).max(axis=1), nan=0.0)
        for parts, of_exit in zip(joined, heads, strict=True)
    ]
    return Reference(images.numpy(), np.concatenate(logits), seams or [], joined, confidences)


def _check_numbers(point: ExitPoint, pooled: Tensor) -> None:
    if not bool(torch.isfinite(pooled).all()):
        raise ExitPointError(
            f"the model computes NaN or infinity at exit {point.number} ({point.module}); a head there needs finite "
            "numbers",
            hint="Choose an exit where the numbers are finite again, or look for an overflow in the model.",
        )


def probe_configuration(manifest: Manifest, reference: Reference, tolerance: float = TOLERANCE) -> Configuration:
    """Return a configuration with every exit on, at its first head, so that about half of the samples exit at each.

    No sample exits where no threshold can tell the confidences apart.
    """
    exits = {
        exit.id: ExitSetting(exit.heads[0].type, threshold_between(confidences, in_doubt))
        for exit, confidences, in_doubt in zip(
            manifest.exits, reference.confidences, _doubts(manifest, reference, tolerance), strict=False
        )
    }
    return Configuration(PROBE, exits)


def verify(bundle: Bundle, reference: Reference, probe: Configuration, tolerance: float = TOLERANCE) -> Verification:
    """Compare a bundle on disk with torch, at batch sizes 1 and 3, and by the exits that its session takes.

    Args:
        probe: see :func:`probe_configuration`. An exit that no sample takes under it is also tested alone, with all
            samples exiting there.
    """
    target, spec = registry.reference(), TargetSpec()
    errors: dict[str, float] = {}
    with closing(_opened(target, bundle, spec)) as device:
        for batch in _BATCHES:
            for name, error in _seam_errors(bundle.manifest, device, reference, batch).items():
                errors[name] = max(error, errors.get(name, 0.0))
    in_doubt = _doubts(bundle.manifest, reference, tolerance, errors)
    with Session(bundle, target.name, spec, allow_untrained=True) as session:
        routes = [
            _route(session, reference, configuration, in_doubt)
            for configuration in (probe, *_single_exit_configurations(probe, bundle.manifest, reference))
        ]
    errors["routed"] = max(route.error for route in routes)
    agreement, exempt = min(route.agreement for route in routes), max(route.exempt for route in routes)
    unclear = inconclusive(_expected(bundle.manifest, reference), errors, tolerance, exempt)
    reason = unclear or failure(errors, tolerance, agreement)
    return Verification(
        verdict="inconclusive" if unclear else "failed" if reason else "passed",
        tolerance=tolerance,
        max_relative_error=max(errors.values()),
        seams=errors,
        control=control_of(reference.logits),
        exit_agreement=agreement,
        exempt=exempt,
        samples=len(reference.images),
        reason=reason,
    )


def check_runs(graph: ir.Model) -> None:
    """Raise CaptureError if onnxruntime cannot run an operation that ONNX defines.

    Models whose weights need a file of their own are not checked here; verification runs them.
    """
    if not fits_in_one_file(graph):
        return
    settings = ort.SessionOptions()
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.intra_op_num_threads, settings.log_severity_level = 1, 4
    model = ir.to_proto(graph).SerializeToString()
    try:
        ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise _cannot_run("onnxruntime", error) from error


def _opened(target: Target, bundle: Bundle, spec: TargetSpec) -> Device:
    ids = [piece.id for piece in bundle.manifest.pieces]
    try:
        return target.open(bundle.piece_specs(ids), bundle.tensor_lives(ids), spec)
    except BundleError as error:
        raise _cannot_run(target.name, error.__cause__ or error) from error


def _cannot_run(engine: str, error: BaseException) -> CaptureError:
    reason = re.sub(r"Load model from \S+ failed:\s*", "", reason_of(error))
    return CaptureError(
        f"{engine} cannot run the exported model: {reason}",
        hint="Replace that operation in the model by others with the same result, or compute it in float32.",
    )


def _expected(manifest: Manifest, reference: Reference) -> dict[str, list[Floats]]:
    """Return torch's outputs under the names under which :func:`_seam_errors` compares them."""
    expected: dict[str, list[Floats]] = {}
    for exit, seams, of_heads in zip(manifest.exits, reference.seams, reference.head_logits, strict=False):
        expected[f"exit {exit.id}"] = seams
        expected |= {f"exit {exit.id} {head.type}": [of] for head, of in zip(exit.heads, of_heads, strict=True)}
    return {**expected, "logits": [reference.logits]}


def _doubts(
    manifest: Manifest, reference: Reference, tolerance: float, errors: Mapping[str, float] = MappingProxyType({})
) -> list[NDArray[np.float64]]:
    """Return for every exit how far rounding may move the confidences of its first head, (N,) each.

    Args:
        errors: measured errors of the heads on a few samples, if known; other samples may have several times as much.
    """
    found = []
    for exit, confidences, logits in zip(manifest.exits, reference.confidences, reference.head_logits, strict=False):
        head = exit.heads[0]
        error = min(tolerance, _MARGIN * errors.get(f"exit {exit.id} {head.type}", np.inf))
        found.append(doubts(confidences, logits[0], head.temperature, error))
    return found


def _single_exit_configurations(probe: Configuration, manifest: Manifest, reference: Reference) -> list[Configuration]:
    """Return for every exit that no sample takes under the probe a configuration under which all samples exit there."""
    confidences = {exit.id: found for exit, found in zip(manifest.exits, reference.confidences, strict=False)}
    return [
        Configuration(PROBE, {exit: ExitSetting(on.head, all_leave(confidences[exit]))})
        for exit, on in probe.exits.items()
        if on.threshold == NONE_LEAVE
    ]


def _seam_errors(manifest: Manifest, device: Device, reference: Reference, batch: int) -> dict[str, float]:
    """Run the chain of segments with every head on the way, then every span after the segments before it."""
    inputs, exits = {manifest.input.name: reference.images[:batch]}, [exit.id for exit in manifest.exits]
    segments = [piece.id for piece in segments_of(manifest, FINAL)]
    names = {spec.name for spec in manifest.tensors}

    def error(expected: Floats, found: Floats) -> float:
        return relative_error(expected[:batch], found, expected)

    def at_end(piece: Piece, end: str, found: Mapping[tuple[str, str], Floats]) -> float:
        """Return the error of what a piece writes that ends at an exit."""
        if end == exits[-1]:
            return error(reference.logits, found[piece.id, LOGITS])
        pairs = zip(reference.seams[exits.index(end)], piece.writes, strict=True)
        return max(error(expected, found[piece.id, name]) for expected, name in pairs)

    errors: dict[str, float] = {}
    found = trace(device, manifest, whole_program(manifest), inputs, names)
    for index, (exit, (*_, segment)) in enumerate(zip(manifest.exits, bodies(manifest).values(), strict=True)):
        errors["logits" if exit.id == FINAL else f"exit {exit.id}"] = at_end(segment, exit.id, found)
        for number, head in enumerate(exit.heads if exit.id != FINAL else ()):
            expected = reference.head_logits[index][number]
            errors[f"exit {exit.id} {head.type}"] = error(expected, found[head.piece, LOGITS])
    for span in manifest.spans:
        runs = [Run(id) for id in (*segments[: segments.index(span.covers[0])], span.id)]
        found = trace(device, manifest, [Feed(manifest.input.name), *runs], inputs, names)
        errors[span.id] = at_end(span, ends_of(manifest, span)[1], found)
    return errors


class _Route(NamedTuple):
    """The exits that a session took under one configuration, compared with those of torch.

    Attributes:
        agreement: share of the samples that took torch's exit, among those not exempt.
        exempt: number of samples whose exit rounding might change.
        error: relative error of the logits of samples that took torch's exit.
    """

    agreement: float
    exempt: int
    error: float


def _route(
    session: Session,
    reference: Reference,
    configuration: Configuration,
    in_doubt: Sequence[NDArray[np.float64]],
) -> _Route:
    """Run all samples under a configuration; ``in_doubt`` is how far each confidence may be off, exit by exit."""
    session.use(configuration)
    count = len(reference.images)
    batches = [session(reference.images[i : i + _SEAM_SAMPLES]) for i in range(0, count, _SEAM_SAMPLES)]
    exits = np.concatenate([result.exit for result in batches])
    logits = np.concatenate([result.logits for result in batches])
    before = session.manifest.exits[:-1]
    expected = np.full(count, len(before))
    near = np.zeros(count, np.bool_)
    remaining = np.ones(count, np.bool_)
    for index, exit in enumerate(before):
        if exit.id not in configuration.exits:
            continue
        threshold = np.float32(configuration.exits[exit.id].threshold)
        confidence = reference.confidences[index]
        if threshold < NONE_LEAVE:
            near |= remaining & (np.abs(confidence - threshold) <= in_doubt[index])
        leave = remaining & (confidence > threshold)
        expected[leave] = index
        remaining &= ~leave
    equal = exits == expected
    error = 0.0
    for index, of_exit in enumerate([*(first for first, *_ in reference.head_logits), reference.logits]):
        rows = equal & (exits == index)
        if rows.any():
            error = max(error, relative_error(of_exit[rows], logits[rows], of_exit))
    return _Route(float(equal[~near].mean()) if not near.all() else 0.0, int(near.sum()), error)
