"""Export one model: train heads and record them, select exits, write pieces, search, verify and seal the bundle.

The steps before, from a file or a module to a graph with exits and open data sets, are in :mod:`dyce_export.prepare`.
Exports with savers (small networks that run before the base) are in :mod:`dyce_export.cascade`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from dyce_calibration.heads.training import TrainedHead, untrained_heads
from dyce_calibration.processes import Processes, connect
from dyce_calibration.promises.choose import choose
from dyce_calibration.promises.plausible import doubts_of
from dyce_calibration.search.costs import macs_of
from dyce_calibration.search.select import select_exits, used_heads
from dyce_export.assembly import probe_images, write_pieces, write_test_vectors
from dyce_export.calibrate import Calibration, calibrate, macs_of_heads
from dyce_export.doubts import accept
from dyce_export.graph.spans import write_spans
from dyce_export.options import Options
from dyce_export.precision.lower import add
from dyce_export.prepare import Prepared, cut_at
from dyce_export.progress import Progress
from dyce_export.reports import report_bundle
from dyce_export.sources.torch_settings import usual_settings
from dyce_export.verification.behaviour import check_alone, check_steady
from dyce_export.verification.probes import FEWEST_PROBES, probe_count
from dyce_export.verification.rounding import SAMPLES, rounding_errors
from dyce_export.verification.verdict import refusal
from dyce_export.verification.verify import Reference, compute_reference, probe_configuration, verify
from dyce_export.writing.bundle_writer import seal
from dyce_export.writing.staging import kept_work, staged
from dyce_runtime.bundle.configuration import FULL, Configuration, Configurations, Entry
from dyce_runtime.bundle.manifest import Manifest, Verification
from dyce_runtime.bundle.reader import Bundle
from dyce_runtime.errors import ExitPointError

log = logging.getLogger("dyce_export")


@dataclass(frozen=True)
class Export:
    """A finished export.

    Attributes:
        path: the folder of the bundle.
        seconds: name of each stage to its duration.
    """

    path: Path
    manifest: Manifest
    configurations: Configurations
    seconds: dict[str, float]

    def __repr__(self) -> str:
        """Summarise the bundle in a few lines."""
        checked = self.manifest.verification
        lines = [
            f"<Export of {self.manifest.model.name} to {self.path}",
            f"  exits: {', '.join(exit.id for exit in self.manifest.exits)}; heads {self.manifest.heads}",
            f"  configurations: {', '.join(self.configurations.named)}",
            f"  verification: {checked.verdict if checked else 'none'}; {sum(self.seconds.values()):.0f} s>",
        ]
        return "\n".join(lines)


@usual_settings()
def write_bundle(prepared: Prepared, output: Path, *, options: Options, progress: Progress) -> Export:
    """Train heads, choose configurations, cut the model, verify and write the bundle.

    If a step fails, ``output`` is not written. Features and half-trained heads are kept next to ``output`` until the
    export succeeds, so that an interrupted export can be resumed. Processes that were launched together share the
    work up to the records; the main process writes.

    Raises:
        DyceError: the subclass says which step failed.
    """
    processes = connect()
    if prepared.data is None:
        return processes.from_main(lambda: _write(prepared, None, output, options, progress))
    with kept_work(output, processes.rank) as work:
        calibration = _calibrate(prepared, work, options, progress, processes)
        return processes.from_main(lambda: _judge_and_write(prepared, calibration, output, options, progress))


def _calibrate(
    prepared: Prepared, work: Path, options: Options, progress: Progress, processes: Processes
) -> Calibration:
    """Extract features, train the heads and record their predictions."""
    assert prepared.data is not None
    return calibrate(
        prepared.backbone,
        prepared.data,
        prepared.val,
        prepared.source.preprocessing,
        work,
        options.types,
        options.recipe,
        seed=options.seed,
        progress=progress,
        processes=processes,
    )


def _judge_and_write(
    prepared: Prepared, calibration: Calibration, output: Path, options: Options, progress: Progress
) -> Export:
    """Check the records for plausibility, select exits if they are chosen automatically, and write the bundle.

    Raises:
        SuspiciousDataError: the records are implausible for a working model, and the user did not allow that.
    """
    if calibration.splits.labels == "data":
        doubts = accept(doubts_of(calibration.records), allowed=options.allow_suspicious)
        prepared = replace(prepared, suspicious=(*prepared.suspicious, *doubts))
    if prepared.auto:
        with progress.stage("exits"):
            prepared, calibration = _select_exits(prepared, calibration, options, progress)
    return _write(prepared, calibration, output, options, progress)


def _select_exits(
    prepared: Prepared, calibration: Calibration, options: Options, progress: Progress
) -> tuple[Prepared, Calibration]:
    """Keep the exits that save most and the heads that the configurations use. Raises ExitPointError if none pays."""
    points = prepared.backbone.points
    costs = macs_of_heads(points, calibration.heads, prepared.total_macs)
    exits = select_exits(
        calibration.records, costs, options.max_exits, lambda rounds: progress.track(rounds, "choosing exits")
    )
    kept = used_heads(calibration.records, costs, exits)
    if not kept:
        raise ExitPointError(
            "no exit pays off on these data: no head is good enough for what it costs",
            hint="Check the accuracy of the model on --val, or choose exits with --exits to see what they do.",
        )
    chosen = [point for point in points if str(point.number) in {exit for exit, _ in kept}]
    numbers, types = (str(place.number) for place in chosen), sorted({type for _, type in kept})
    log.info("exits that save most: %s, with heads %s", ", ".join(numbers), ", ".join(types))
    return cut_at(prepared, chosen), calibration.restricted(kept)


def _write(
    prepared: Prepared, calibration: Calibration | None, output: Path, options: Options, progress: Progress
) -> Export:
    """Write and verify the bundle. Without calibration its heads are untrained."""
    images = probe_images(prepared, calibration, probe_count(prepared.total_macs))
    heads = _untrained(prepared, images, options) if calibration is None else calibration.heads
    with progress.stage("reference"):
        reference = compute_reference(prepared.logits, prepared.backbone, heads, images)
    with staged(output, force=options.force) as folder:
        with progress.stage("onnx"):
            manifest = write_pieces(prepared, heads, calibration, folder)
        probe = probe_configuration(manifest, reference, options.tolerance)
        configurations = _search(manifest, calibration, probe)
        with progress.stage("spans"):
            spans = write_spans(manifest, configurations, folder)
        made = Bundle(folder, msgspec.structs.replace(manifest, pieces=(*manifest.pieces, *spans)), configurations)
        with progress.stage("verify"):
            verification = _verify(prepared, made, heads, reference, probe, options.tolerance)
        write_test_vectors(reference, probe, made)
        if calibration is not None:
            with progress.stage("report"):
                report_bundle(made, calibration.records, prepared.val or prepared.data)
        manifest = _lowered(prepared, made, options, progress)
        manifest = seal(folder, msgspec.structs.replace(manifest, verification=verification), configurations)
    return Export(output, manifest, configurations, progress.seconds)


def _untrained(prepared: Prepared, images: Tensor, options: Options) -> list[list[TrainedHead]]:
    pooled = prepared.backbone(images[:FEWEST_PROBES])[1]
    return untrained_heads(pooled, prepared.classes, options.types, seed=options.seed)


def _search(manifest: Manifest, calibration: Calibration | None, probe: Configuration) -> Configurations:
    """Search configurations on the records. Without data return ``full`` and the probe, to measure speed with."""
    if calibration is None:
        return Configurations(named={FULL: Entry(exits={}), probe.name: Entry(exits=probe.exits)})
    return choose(calibration.records, macs_of(manifest))


def _verify(
    prepared: Prepared,
    made: Bundle,
    heads: list[list[TrainedHead]],
    reference: Reference,
    probe: Configuration,
    tolerance: float,
) -> Verification:
    """Compare the pieces with torch. Raises VerificationError, which names the likely cause of the difference."""
    found = verify(made, reference, probe, tolerance)
    if found.verdict == "passed":
        return found
    images = torch.from_numpy(reference.images)
    check_steady(prepared.logits, images)
    raise refusal(
        found,
        random=prepared.source.weights == "random",
        pictures=made.manifest.heads == "trained",
        measure_rounding=lambda: rounding_errors(prepared.backbone, heads, images[:SAMPLES]),
        check_model=lambda: check_alone(prepared.logits, images[:FEWEST_PROBES], tolerance),
    )


def _lowered(prepared: Prepared, made: Bundle, options: Options, progress: Progress) -> Manifest:
    """Add the requested lower precisions as bundles inside this one, and return the manifest that lists them."""
    if not options.precisions:
        return made.manifest
    assert prepared.data is not None
    pictures = (prepared.data, prepared.val or prepared.data)
    return add(made, options.precisions, *pictures, options.limits, progress)
