"""Prepare an export: capture the model as a graph, find and select exit points, and open the data.

Everything that can be checked without training is checked here, before anything is trained or written.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.export import ExportedProgram

from dyce_calibration.heads.resume import fingerprint
from dyce_export.calibrate import check_amount, content_of
from dyce_export.doubts import accept
from dyce_export.graph.backbone import Backbone
from dyce_export.graph.capture import capture, functionalise, output_nodes
from dyce_export.graph.exit_points import ExitPoint, ExitPoints, find_exit_points
from dyce_export.graph.onnx_graphs import to_onnx
from dyce_export.graph.pieces import node_names
from dyce_export.options import Options
from dyce_export.progress import Progress
from dyce_export.sources.answers import answer
from dyce_export.sources.places import reason_of
from dyce_export.sources.source import Source
from dyce_export.sources.task import as_single_label, check_declared
from dyce_export.sources.torch_settings import usual_settings
from dyce_export.verification.behaviour import check_behaviour
from dyce_export.verification.probes import condition, synthetic_images
from dyce_export.verification.verify import check_runs
from dyce_runtime.bundle.manifest import Model
from dyce_runtime.errors import CaptureError, DyceError, UsageError
from dyce_runtime.inputs.datasets import Dataset
from dyce_runtime.inputs.decoding import Picture
from dyce_runtime.inputs.labelled import ModelFacts, Pictures, open_labelled
from dyce_runtime.inputs.preprocessing import preprocess

log = logging.getLogger("dyce_export")

AUTO = "auto"


@dataclass(frozen=True)
class Captured:
    """A model captured as a graph, with its exit points numbered."""

    source: Source
    program: ExportedProgram
    points: ExitPoints


@dataclass(frozen=True)
class Prepared:
    """A captured model with selected exits and open data, after all checks that need no training.

    Attributes:
        backbone: the model cut at the selected exits, or at all candidates if ``auto``.
        auto: whether exits are still to be selected from all candidates, by the data.
        total_macs: multiply-accumulates of one sample through the whole model.
        classes: number of classes.
        data: samples on which the heads are trained; None leaves the heads untrained.
        val: samples that the model has not seen, on which configurations are chosen; None takes them from ``data``.
        suspicious: doubts about the labels that the user accepted.
        graph: the program in ONNX; its outputs are the logits and the tensors that are alive at the exits.
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
        """The model's entry in the manifest. Class names that the model does not provide come from class folders."""
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
        """Return the logits (N, classes) float32 for images (N, C, H, W), without gradients.

        They come from the original module if there is one, otherwise from the captured program.
        """
        with torch.inference_mode():
            return self.backbone(images)[0] if self.source.module is None else answer(self.source.module, images)

    def answer(self, pictures: Sequence[Picture]) -> NDArray[np.int64]:
        """Return the predicted classes (N,) int64 of N images, which are preprocessed first."""
        return self.logits(torch.from_numpy(preprocess(pictures, self.source.preprocessing))).argmax(dim=1).numpy()


@usual_settings()
def capture_source(source: Source, progress: Progress) -> Captured:
    """Capture a model as a graph and number its exit points.

    If the module has random weights, they are conditioned first, in place.

    Raises:
        CaptureError: the model cannot be captured.
        TaskError: its outputs are not the logits of one label per image.
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
    """Find the exit points of a captured model. Raises CaptureError if torch cannot analyse the graph."""
    try:
        return find_exit_points(program)
    except DyceError:
        raise
    except Exception as error:  # the shape rules of custom operations may raise anything
        raise CaptureError(
            f"no exit points can be found in the captured model: {reason_of(error)}",
            hint="An operation of your own needs a rule for tensors without data: torch.library.register_fake.",
        ) from error


@usual_settings()
def prepare(
    captured: Captured, exits: Sequence[str], *, data: Pictures | None, val: Pictures | None, options: Options
) -> Prepared:
    """Select exits, open the data and convert the model to ONNX in memory. Writes no file.

    Args:
        exits: as in :func:`dyce_export.cascade.export_source`. Empty for a model that is not cut: a saver (a small
            network that runs before the base), or the base after one.
        data, val: as in that function, or open data sets.

    Raises:
        UsageError: ``val`` or ``auto`` was given without ``data``.
        ExitPointError: an exit is unknown or repeated, or exits are not in ascending order.
        DataError: the data cannot be read, is too small, or does not fit the model.
        CaptureError: the model has no exit points, or ONNX or the engine that checks the graph does not support one of
            its operations.
    """
    check_data(data, val, options)
    auto = list(exits) == [AUTO]
    if auto and data is None:
        raise UsageError(
            "exits cannot be chosen automatically without data", hint="Give --data, or numbers to --exits."
        )
    source, program, points = captured.source, captured.program, captured.points
    classes = int(output_nodes(program)[0].meta["val"].shape[1])
    source = _with_fitting_names(source, classes)
    backbone = Backbone(program, points.require() if auto else points.select(exits) if exits else ())

    prepared = Prepared(source, program, backbone, auto, points.total_macs, classes)
    prepared = with_pictures(prepared, data, val, options)
    graph = to_onnx(program, node_names(backbone.points))
    check_runs(graph)  # before heads are trained, which can take hours
    return replace(prepared, graph=graph)


def cut_at(prepared: Prepared, points: Sequence[ExitPoint]) -> Prepared:
    """Return the same model, cut at the exits that were chosen from all candidates."""
    backbone = Backbone(prepared.program, points)
    return replace(prepared, backbone=backbone, graph=to_onnx(prepared.program, node_names(points)), auto=False)


def _with_fitting_names(source: Source, classes: int) -> Source:
    """Return the model without class names if their number differs from the number of classes."""
    names = source.class_names
    if names is None or len(names) == classes:
        return source
    log.warning("%s names %d classes, the model has %d: ignoring the names", source.origin, len(names), classes)
    return replace(source, class_names=None)


def with_pictures(prepared: Prepared, data: Pictures | None, val: Pictures | None, options: Options) -> Prepared:
    """Return the model with its data opened and the labels compared with its predictions.

    Raises:
        DataError: the data cannot be read, is too small, or does not fit the model.
        SuspiciousDataError: the labels do not agree with the predictions, and the user did not allow that.
    """
    source = prepared.source
    model = ModelFacts(prepared.classes, source.preprocessing, source.class_names, options.classes_file, source.claimed)
    (fit, unseen), doubts = open_labelled((data, val), model, prepared.answer)
    check_amount(fit, unseen, options.seed)
    return replace(prepared, data=fit, val=unseen, suspicious=accept(doubts, allowed=options.allow_suspicious))


def fingerprint_of(prepared: Prepared, options: Options) -> str:
    """Return the fingerprint of everything that the bundle of a model will depend on."""
    how = replace(options, force=False, classes_file=None, allow_suspicious=False)
    pictures = [(part.hashes, part.labels) for part in (prepared.data, prepared.val) if part is not None]
    arrays = [array for both in pictures for array in both]
    return fingerprint([how, prepared.auto, prepared.source.preprocessing, *arrays, *content_of(prepared.backbone)])


def check_data(data: Pictures | None, val: Pictures | None, options: Options) -> None:
    """Raise UsageError if the options need images that were not given."""
    if val is not None and data is None:
        raise UsageError("val was given without data; data fits the heads, val then chooses configurations")
    if options.precisions and data is None:
        raise UsageError(
            f"{', '.join(options.precisions)} was asked for without data",
            hint="Give --data: in a lower precision other samples exit, so thresholds are chosen again.",
        )
