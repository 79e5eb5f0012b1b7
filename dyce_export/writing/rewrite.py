"""Derive a bundle from a bundle without training: other configurations with their spans, or further precisions."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import msgspec

from dyce_export.graph.spans import write_spans
from dyce_export.precision.lower import TARGET, add
from dyce_export.precision.trials import Limits
from dyce_export.progress import Progress
from dyce_export.writing.bundle_writer import copy_files, seal
from dyce_export.writing.staging import staged
from dyce_runtime.bundle.configuration import Configurations
from dyce_runtime.bundle.manifest import UNCUT, Manifest, Piece
from dyce_runtime.bundle.reader import (
    CONFIGURATIONS,
    MANIFEST,
    PRECISIONS,
    Bundle,
    may_change,
    open_bundle,
)
from dyce_runtime.bundle.test_vectors import read_vectors, span_errors
from dyce_runtime.errors import DestinationError, VerificationError
from dyce_runtime.execution.contracts import TargetSpec
from dyce_runtime.execution.session import Session
from dyce_runtime.inputs.datasets import Dataset
from dyce_runtime.targets import registry


def rewrite(bundle: Bundle, configurations: Configurations, output: Path, *, force: bool = False) -> Bundle:
    """Copy a bundle with ``configurations`` instead of its own, the spans that they need, and no report.

    Every new span is compared with the segments that it replaces, on the bundle's test vectors.

    Raises:
        DestinationError: see :func:`dyce_export.writing.staging.staged`.
        VerificationError: a span does not compute the same as its segments.
    """
    old = {span.id for span in bundle.manifest.spans if span.id != UNCUT}
    with staged(output, force=force) as folder:
        gone = {name for id in old for name in (bundle.manifest.piece(id).file, *bundle.manifest.piece(id).data)}
        copy_files(bundle, set(bundle.contents()) - gone, folder)
        kept = tuple(piece for piece in bundle.manifest.pieces if piece.id not in old)
        manifest = msgspec.structs.replace(bundle.manifest, pieces=kept)
        spans = write_spans(manifest, configurations, folder)
        manifest = msgspec.structs.replace(manifest, pieces=(*kept, *spans))
        manifest = check_spans(Bundle(folder, manifest, configurations), spans, old)
        seal(folder, manifest, configurations)
    return open_bundle(output)


def with_precisions(
    bundle: Bundle,
    names: Sequence[str],
    data: Dataset,
    val: Dataset,
    output: Path,
    limits: Limits,
    progress: Progress,
    target: str = TARGET,
    *,
    force: bool = False,
) -> Bundle:
    """Copy a bundle and add the same network in other precisions; see :func:`dyce_export.precision.lower.add`.

    Engines built for the bundle and configurations chosen on it after it was written are copied too.

    Args:
        data: images for quantisation.
        val: images on which the precisions are checked and thresholds are chosen again.
        output: may be the bundle itself, which is replaced once the new one is complete.

    Raises:
        DestinationError: see :func:`dyce_export.writing.staging.staged`; or the bundle was replaced while it was read.
    """
    in_place = output.resolve() == bundle.path.resolve()
    with staged(output, force=force or in_place) as folder:
        if in_place and open_bundle(output, check_hashes=False).manifest != bundle.manifest:
            raise DestinationError(
                f"{output} was replaced while it was read",
                hint="Run the command again: it then starts from that.",
            )
        old = tuple(f"{PRECISIONS}/{name}/" for name in names)
        there = {path.relative_to(bundle.path).as_posix() for path in bundle.path.rglob("*") if path.is_file()}
        ours = {name for name in there if name in bundle.manifest.files or may_change(name)}
        copy_files(bundle, {name for name in ours if not name.startswith(old)}, folder)
        manifest = add(
            Bundle(folder, bundle.manifest, bundle.configurations), names, data, val, limits, progress, target
        )
        seal(folder, manifest, bundle.configurations)
        # Files of the user, which no manifest lists.
        copy_files(bundle, there - ours - {MANIFEST, CONFIGURATIONS}, folder)
    return open_bundle(output)


def check_spans(bundle: Bundle, spans: tuple[Piece, ...], old: Collection[str] = ()) -> Manifest:
    """Compare new spans with the segments that they replace; return the manifest with the measured errors.

    Args:
        bundle: a bundle that contains its test vectors.
        old: ids of the spans that were removed.

    Raises:
        VerificationError: a span does not compute the same as its segments.
    """
    with Session(bundle, registry.reference().name, TargetSpec(), allow_untrained=True) as session:
        errors = span_errors(read_vectors(bundle), session)
    return merge_verification(bundle.manifest, {span.id: errors[span.id] for span in spans}, "its segments", old)


def merge_verification(
    manifest: Manifest, errors: dict[str, float], against: str, old: Collection[str] = ()
) -> Manifest:
    """Return the manifest with the relative errors of added pieces.

    Args:
        errors: piece id to its relative error.
        against: what the pieces were compared with, for the error message.
        old: ids of the pieces that were removed.

    Raises:
        VerificationError: an error exceeds the tolerance of the bundle.
    """
    before, lowering = manifest.verification, manifest.lowering
    # In a lower precision, a span may deviate no more than the precision itself does.
    tolerance = before.tolerance if before is not None else lowering.logits_error if lowering is not None else 0.0
    for id, error in errors.items():
        if not error <= tolerance:
            raise VerificationError(
                f"verification failed: the relative error of {id} against {against} is {error:.1e}; at most "
                f"{tolerance:.0e} is allowed"
            )
    if before is None:
        return manifest
    seams = {name: error for name, error in before.seams.items() if name not in old} | errors
    verification = msgspec.structs.replace(before, seams=seams, max_relative_error=max(seams.values()))
    return msgspec.structs.replace(manifest, verification=verification)
