"""The export, from a loaded model to a verified bundle. Reads like the left half of the design."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.export import ExportedProgram

from dyce_calibration.heads.resume import fingerprint
from dyce_calibration.heads.temperature import softmax
from dyce_calibration.heads.training import TrainedHead, untrained_heads
from dyce_calibration.processes import connect
from dyce_calibration.promises.choose import choose
from dyce_calibration.promises.plausible import doubts_of
from dyce_calibration.search.costs import macs_of
from dyce_calibration.search.select import select_exits, used_heads
from dyce_export.bundle_writer import seal
from dyce_export.calibrate import Calibration, calibrate, check_amount, content_of, macs_of_heads
from dyce_export.doubts import accept
from dyce_export.graph.backbone import Backbone
from dyce_export.graph.capture import capture, functionalise, output_nodes
from dyce_export.graph.exit_points import ExitPoints, find_exit_points
from dyce_export.graph.onnx_graphs import IMAGE, to_onnx
from dyce_export.graph.pieces import builtin_head, node_names, tensor_table, write_backbone, write_heads
from dyce_export.graph.programs import network_program
from dyce_export.graph.spans import write_spans
from dyce_export.options import Options
from dyce_export.precision.lower import add
from dyce_export.progress import Progress
from dyce_export.reports import report_bundle
from dyce_export.sources.answers import answer
from dyce_export.sources.places import reason_of
from dyce_export.sources.source import Source
from dyce_export.sources.task import as_single_label, check_declared
from dyce_export.sources.torch_settings import usual_settings
from dyce_export.staging import kept_work, staged
from dyce_export.verification.behaviour import check_alone, check_behaviour, check_steady
from dyce_export.verification.probes import FEWEST_PROBES, condition, probe_count, synthetic_images
from dyce_export.verification.rounding import SAMPLES, rounding_errors
from dyce_export.verification.verdict import refusal
from dyce_export.verification.verify import Reference, check_runs, compute_reference, probe_configuration, verify
from dyce_runtime.bundle.configuration import FULL, Configuration, Configurations, Entry
from dyce_runtime.bundle.manifest import FINAL, SCHEMA_VERSION, Input, Manifest, Model, Network
from dyce_runtime.bundle.reader import (
    RECORDS,
    SPLITS,
    Bundle,
)
from dyce_runtime.bundle.test_vectors import Vectors, write_vectors
from dyce_runtime.errors import CaptureError, DyceError, ExitPointError, UsageError
from dyce_runtime.inputs.datasets import Dataset
from dyce_runtime.inputs.decoding import Picture
from dyce_runtime.inputs.labelled import ModelFacts, Pictures, open_labelled
from dyce_runtime.inputs.preprocessing import preprocess

log = logging.getLogger("dyce_export")

AUTO = "auto"
_TEST_VECTORS = 8
# Splits whose samples may be looked at before configurations are certified and tested.
_MAY_BE_SEEN = ("temperature", "search")
_PACKAGES = ("dyce-export", "torch", "timm", "onnx", "onnx-ir", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Export:
    """A finished export."""

    path: Path
    manifest: Manifest
    configurations: Configurations
    seconds: dict[str, float]

    def __repr__(self) -> str:
        """What was made, on a few lines."""
        checked = self.manifest.verification
        lines = [
            f"<Export of {self.manifest.model.name} to {self.path}",
            f"  exits: {', '.join(exit.id for exit in self.manifest.exits)}; heads {self.manifest.heads}",
            f"  configurations: {', '.join(self.configurations.named)}",
            f"  verification: {checked.verdict if checked else 'none'}; {sum(self.seconds.values()):.0f} s>",
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class Captured:
    """A model as a graph, with its exit points numbered."""

    source: Source
    program: ExportedProgram
    points: ExitPoints


@dataclass(frozen=True)
class Prepared:
    """A captured model, its chosen exits and opened data: everything that can be checked at once was.

    Attributes:
        backbone: cut at the chosen exits; at all candidates if these are still to be chosen (``auto``).
        suspicious: what speaks against the labels and was allowed.
        graph: the program in ONNX, which returns what is alive at the exits, too.
    """

    source: Source
    program: ExportedProgram
    backbone: Backbone
    auto: bool
    total_macs: int
    classes: int
    data: Dataset | None = None
    val: Dataset | None = None
    suspicious: tuple[str, ...] = ()
    graph: ir.Model | None = None

    @property
    def model(self) -> Model:
        """As the manifest describes it; class folders name the classes that have no other names."""
        known = (part.class_names for part in (self.source, self.data, self.val) if part is not None)
        return Model(
            name=self.source.name,
            source=self.source.origin,
            weights=self.source.weights,
            num_classes=self.classes,
            macs=self.total_macs,
            parameters=sum(tensor.numel() for tensor in self.program.parameters()),
            sha256=self.source.sha256,
            class_names=next(filter(None, known), None),
        )

    def logits(self, images: Tensor) -> Tensor:
        """(N, classes) of the model as it was handed over, if it was a module; in inference mode."""
        with torch.inference_mode():
            return self.backbone(images)[0] if self.source.module is None else answer(self.source.module, images)

    def answer(self, pictures: Sequence[Picture]) -> NDArray[np.int64]:
        """The class (N,) that the model answers for pictures."""
        return self.logits(torch.from_numpy(preprocess(pictures, self.source.preprocessing))).argmax(dim=1).numpy()


@usual_settings()
def capture_source(source: Source, progress: Progress) -> Captured:
    """Capture a model and number its exit points. Random weights are conditioned first, in place.

    Raises:
        CaptureError: the model cannot be captured.
        TaskError: its outputs are no logits of one label per picture.
    """
    with progress.stage("capture"):
        images = synthetic_images(16, source.input_size, seed=1)
        if source.module is None:
            assert source.program is not None
            program = functionalise(source.program)
        else:
            check_declared(source.module)
            if source.weights == "random":
                condition(source.module, images)
            program = capture(source.module, source.input_size)
        model = partial(answer, source.module) if source.module else program.module(check_guards=False)
        check_behaviour(model, program, images[:3])
        if as_single_label(program, model, images):
            source = replace(source, module=None)
        return Captured(source, program, _exit_points(program))


def _exit_points(program: ExportedProgram) -> ExitPoints:
    """Of a model that was captured. Raises CaptureError if torch cannot follow its own graph."""
    try:
        return find_exit_points(program)
    except DyceError:
        raise
    except Exception as error:  # operations are run by rules of their own, on tensors without data
        raise CaptureError(
            f"no exit points can be found in the captured model: {reason_of(error)}",
            hint="An operation of your own needs a rule for tensors without data: torch.library.register_fake.",
        ) from error


@usual_settings()
def prepare(
    captured: Captured, exits: Sequence[str], *, data: Pictures | None, val: Pictures | None, options: Options
) -> Prepared:
    """Choose exits, open the data and write the model as ONNX, in memory; writes no file.

    Args:
        exits: as in :func:`dyce_export.cascade.export_source`; none leave the model whole, as a saver is, or what
            stands behind one.
        data, val: as there, or opened already.

    Raises:
        UsageError: ``val`` without ``data``, or ``auto`` without.
        ExitPointError, DataError: what is wrong with the exits or the data.
        CaptureError: the model uses what ONNX, or the engine that checks it, has no form of.
    """
    check_data(data, val, options)
    auto = list(exits) == [AUTO]
    if auto and data is None:
        raise UsageError(
            "exits are to be chosen from data, and there are none", hint="Give --data, or numbers to --exits."
        )
    source, program, points = captured.source, captured.program, captured.points
    classes = int(output_nodes(program)[0].meta["val"].shape[1])
    source = _with_fitting_names(source, classes)
    backbone = Backbone(program, points.require() if auto else points.select(exits) if exits else ())

    prepared = Prepared(source, program, backbone, auto, points.total_macs, classes)
    prepared = with_pictures(prepared, data, val, options)
    graph = to_onnx(program, node_names(backbone.points))
    check_runs(graph)  # before heads are trained for hours
    return replace(prepared, graph=graph)


def _with_fitting_names(source: Source, classes: int) -> Source:
    """The model without names of its classes if these are not as many as it has."""
    names = source.class_names
    if names is None or len(names) == classes:
        return source
    log.warning("%s names %d classes, the model has %d: ignoring the names", source.origin, len(names), classes)
    return replace(source, class_names=None)


def with_pictures(prepared: Prepared, data: Pictures | None, val: Pictures | None, options: Options) -> Prepared:
    """A model with its pictures, whose labels are compared with what it answers.

    Raises:
        DataError: the data cannot be opened, or its labels do not go together with the answers.
    """
    source = prepared.source
    model = ModelFacts(prepared.classes, source.preprocessing, source.class_names, options.classes_file, source.claimed)
    (fit, unseen), doubts = open_labelled((data, val), model, prepared.answer)
    check_amount(fit, unseen, options.seed)
    return replace(prepared, data=fit, val=unseen, suspicious=accept(doubts, allowed=options.allow_suspicious))


def fingerprint_of(prepared: Prepared, options: Options) -> str:
    """Of everything that its bundle will depend on."""
    how = replace(options, force=False, classes_file=None, allow_suspicious=False)
    pictures = [(part.hashes, part.labels) for part in (prepared.data, prepared.val) if part is not None]
    arrays = [array for both in pictures for array in both]
    return fingerprint([how, prepared.auto, prepared.source.preprocessing, *arrays, *content_of(prepared.backbone)])


def check_data(data: Pictures | None, val: Pictures | None, options: Options) -> None:
    """Raise UsageError if what was asked for needs pictures that were not given."""
    if val is not None and data is None:
        raise UsageError("val was given without data; data fits the heads, val then chooses configurations")
    if options.precisions and data is None:
        raise UsageError(
            f"{', '.join(options.precisions)} was asked for without data",
            hint="Give --data: in a lower precision other samples leave, so thresholds are chosen for it.",
        )


@usual_settings()
def write_bundle(prepared: Prepared, output: Path, *, options: Options, progress: Progress) -> Export:
    """Train heads, choose configurations, cut, verify and write; nothing stands at ``output`` if a step fails.

    Features and half-trained heads are kept beside it meanwhile, so that an interrupted export can be repeated.
    Processes that were launched together share the work up to the records; one of them writes.
    """
    processes = connect()
    if prepared.data is None:
        return processes.from_main(lambda: _write(prepared, None, output, options, progress))
    with kept_work(output, processes.rank) as work:
        calibration = calibrate(
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

        def write() -> Export:
            judged = _judged(prepared, calibration, options)
            return _write(*_selected(judged, calibration, options, progress), output, options, progress)

        return processes.from_main(write)


def _write(
    prepared: Prepared, calibration: Calibration | None, output: Path, options: Options, progress: Progress
) -> Export:
    """The bundle, verified."""
    source, backbone = prepared.source, prepared.backbone
    probes = _probe_images(prepared, calibration, probe_count(prepared.total_macs))
    if calibration is None:
        few = probes[:FEWEST_PROBES]
        heads = untrained_heads(backbone(few)[1], prepared.classes, options.types, seed=options.seed)
    else:
        heads = calibration.heads
    with progress.stage("reference"):
        reference = compute_reference(prepared.logits, backbone, heads, probes)
    with staged(output, force=options.force) as folder:
        with progress.stage("onnx"):
            manifest = _write_pieces(prepared, heads, calibration, folder)
        probe = probe_configuration(manifest, reference, options.tolerance)
        configurations = _configurations(manifest, calibration, probe)
        with progress.stage("spans"):
            spans = write_spans(manifest, configurations, folder)
            manifest = msgspec.structs.replace(manifest, pieces=(*manifest.pieces, *spans))
        with progress.stage("verify"):
            verification = verify(Bundle(folder, manifest, configurations), reference, probe, options.tolerance)
            if verification.verdict != "passed":
                check_steady(prepared.logits, probes)
                raise refusal(
                    verification,
                    random=source.weights == "random",
                    pictures=calibration is not None,
                    measure_rounding=lambda: rounding_errors(backbone, heads, probes[:SAMPLES]),
                    check_model=lambda: check_alone(prepared.logits, probes[:FEWEST_PROBES], options.tolerance),
                )
        _write_test_vectors(reference, probe, Bundle(folder, manifest, configurations))
        if calibration is not None:
            with progress.stage("report"):
                report_bundle(
                    Bundle(folder, manifest, configurations), calibration.records, prepared.val or prepared.data
                )
        if options.precisions:
            assert prepared.data is not None
            pictures = (prepared.data, prepared.val or prepared.data)
            bundle = Bundle(folder, manifest, configurations)
            manifest = add(bundle, options.precisions, *pictures, options.limits, progress)
        manifest = seal(folder, msgspec.structs.replace(manifest, verification=verification), configurations)
    return Export(output, manifest, configurations, progress.seconds)


def _judged(prepared: Prepared, calibration: Calibration, options: Options) -> Prepared:
    """The model with what speaks against its records and is allowed. Raises SuspiciousDataError."""
    if calibration.splits.labels != "data":
        return prepared
    found = accept(doubts_of(calibration.records), allowed=options.allow_suspicious)
    return replace(prepared, suspicious=(*prepared.suspicious, *found))


def _selected(
    prepared: Prepared, calibration: Calibration, options: Options, progress: Progress
) -> tuple[Prepared, Calibration]:
    """The exits and heads that are worth it, where they were left to choose."""
    if not prepared.auto:
        return prepared, calibration
    with progress.stage("exits"):
        return _select(prepared, calibration, options, progress)


def _select(
    prepared: Prepared, calibration: Calibration, options: Options, progress: Progress
) -> tuple[Prepared, Calibration]:
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
    backbone = Backbone(prepared.program, chosen)
    graph = to_onnx(prepared.program, node_names(chosen))
    return replace(prepared, backbone=backbone, graph=graph, auto=False), calibration.restricted(kept)


def _probe_images(prepared: Prepared, calibration: Calibration | None, count: int) -> Tensor:
    """Real pictures where there are any, spread over the data set; synthetic ones otherwise.

    None of them certifies or tests configurations. The first ones, which become test vectors, are the same for every
    model.
    """
    source, data = prepared.source, prepared.val or prepared.data
    if data is None or calibration is None:
        return synthetic_images(count, source.input_size)
    usable = np.flatnonzero(np.isin(data.hashes, np.concatenate([calibration.hashes[name] for name in _MAY_BE_SEEN])))
    spread = [np.linspace(0, len(usable) - 1, number).astype(int) for number in (_TEST_VECTORS, count)]
    rows = usable[list(dict.fromkeys(np.concatenate(spread).tolist()))[:count]]
    return torch.from_numpy(preprocess(data.images(rows), source.preprocessing))


def _write_pieces(
    prepared: Prepared, heads: Sequence[Sequence[TrainedHead]], calibration: Calibration | None, folder: Path
) -> Manifest:
    source, backbone = prepared.source, prepared.backbone
    assert prepared.graph is not None
    temperature = calibration.final_temperature if calibration else 1.0
    bodies = write_backbone(
        prepared.graph, backbone, source.input_size, prepared.classes, prepared.total_macs, temperature, folder
    )
    segments = [piece.id for piece in bodies if piece.role == "segment"]
    final = builtin_head(segments[-1], temperature)
    head_pieces, exits = write_heads(backbone, heads, final, trained=calibration is not None, folder=folder)
    if calibration is not None:
        (folder / RECORDS).parent.mkdir()
        calibration.records.save(folder / RECORDS)
        np.savez_compressed(folder / SPLITS, **calibration.hashes)  # type: ignore[arg-type]
    return Manifest(
        schema_version=SCHEMA_VERSION,
        requires=(),
        producer=_producer(),
        networks=(Network(FINAL, prepared.model, (Input(IMAGE, source.preprocessing),), tuple(e.id for e in exits)),),
        tensors=tensor_table(backbone.points, source.input_size, prepared.classes),
        pieces=(*bodies, *head_pieces),
        exits=tuple(exits),
        program=network_program([IMAGE], segments, exits),
        heads="untrained" if calibration is None else "trained",
        files={},
        splits=calibration.splits if calibration else None,
        suspicious=prepared.suspicious,
    )


def _configurations(manifest: Manifest, calibration: Calibration | None, probe: Configuration) -> Configurations:
    """Searched from the records; without data ``full``, and the probe for measurements of speed."""
    if calibration is None:
        return Configurations(named={FULL: Entry(exits={}), probe.name: Entry(exits=probe.exits)})
    return choose(calibration.records, macs_of(manifest))


def _write_test_vectors(reference: Reference, probe: Configuration, bundle: Bundle) -> None:
    """Inputs with the logits and exits that torch computes, so that a device can check itself."""
    count, manifest = _TEST_VECTORS, bundle.manifest
    logits = [*reference.head_logits, [reference.logits]]
    scores = {
        (exit.id, head.type): softmax(of_head[:count], head.temperature).max(axis=1).astype(np.float32)
        for exit, of_exit in zip(manifest.exits, logits, strict=True)
        for head, of_head in zip(exit.heads, of_exit, strict=True)
    }
    thresholds = np.array([setting.threshold for setting in probe.exits.values()], np.float32)
    inputs = {manifest.input.name: reference.images[:count]}
    write_vectors(Vectors(inputs, reference.logits[:count], scores, thresholds), bundle)


def _producer() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
