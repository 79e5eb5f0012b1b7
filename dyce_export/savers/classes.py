"""Open images for a base and its savers, label them in the classes of each model, and check their predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dyce_calibration.records import Records
from dyce_export.doubts import accept
from dyce_export.options import Options
from dyce_export.prepare import Captured, Prepared, prepare, with_pictures
from dyce_export.savers.joint_verification import Mapped, Member, Ready, class_order
from dyce_runtime.bundle.reader import Bundle
from dyce_runtime.errors import SuspiciousDataError
from dyce_runtime.execution.contracts import TargetSpec
from dyce_runtime.execution.session import Session
from dyce_runtime.inputs.class_order import Comparison, Doubt, doubt_of
from dyce_runtime.inputs.datasets import Dataset
from dyce_runtime.inputs.labelled import ModelFacts, Pictures, answer_of, open_labelled
from dyce_runtime.targets import registry

_HINT = "Say which class of the saver is which class of the base with --saver-classes: `names`, or a file."


def open_for(
    base: Bundle, places: Sequence[Pictures | None], options: Options
) -> tuple[tuple[Dataset | None, ...], tuple[str, ...]]:
    """Open images for a base that is a bundle.

    Args:
        places: sources of images, or open data sets; None stays None.

    Returns:
        the data sets, in the order of ``places``, and the doubts about their labels that the options allow.

    Raises:
        DataError: the data cannot be read or does not fit the base.
        SuspiciousDataError: the labels do not agree with the predictions of the base, and the options do not allow it.
    """
    model, way = base.manifest.model, base.manifest.preprocessing
    with Session(base, registry.find().name, TargetSpec(), allow_untrained=True) as session:
        facts = ModelFacts(model.num_classes, way, model.class_names, options.classes_file)
        opened, doubts = open_labelled(places, facts, answer_of(session))
    return tuple(opened), accept(doubts, allowed=options.allow_suspicious)


def prepare_saver(model: Captured, options: Options) -> Prepared:
    """Prepare a model that is to become a saver: without exits, and without data yet. See :func:`prepare`."""
    return prepare(model, [], data=None, val=None, options=replace(options, precisions=(), sequence=None))


def with_pictures_of(
    model: Ready, base: Ready, mapping: Mapped | None, pictures: Sequence[Dataset | None], options: Options
) -> Ready:
    """Return a saver with the images of its base, labelled in its own classes; a bundle is returned as it is.

    Args:
        mapping: see :func:`dyce_export.savers.joint_verification.class_order`.
        pictures: the images of the base, labelled in its classes: those for training, then those for validation.

    Raises:
        DataError: the images do not fit the saver.
        SuspiciousDataError: the labels do not agree with the saver's predictions, and the options do not allow it.
    """
    if isinstance(model, Bundle):
        return model
    order = class_order(Member.of(model).model, Member.of(base).model, mapping)
    data, val = (part if part is None or order is None else part.relabelled(order) for part in pictures)
    try:
        return with_pictures(model, data, val, options)
    except SuspiciousDataError as error:
        hint = f"{_HINT} --allow-suspicious goes on all the same."
        raise SuspiciousDataError(f"saver {model.source.name}, on {error.message}", hint=hint) from None


def doubts_of_saver(name: str, records: Records, order: Sequence[int] | None, like: Records) -> tuple[Doubt, ...]:
    """Return the doubt, if any, that the classes of a saver are those of the base, from predictions and labels.

    Uses the samples of the split ``search`` only.

    Args:
        name: name of the saver.
        records: records of the saver on the images of the base's records, in the same order.
        order: for every class of the base its index among the saver's classes; None if they are the same.
        like: records of the base, with labels in its classes.
    """
    rows = like.split == "search"
    answers = records.predictions[rows, -1]
    answers = answers if order is None else np.argsort(order)[answers]
    labels = like.labels[rows]
    if not len(labels):
        return ()
    comparison = Comparison(labels, answers, int(max(labels.max(), answers.max())) + 1)
    doubt = doubt_of(comparison, f"saver {name}")
    return () if doubt is None else (doubt._replace(hint=_HINT),)
