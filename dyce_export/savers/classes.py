"""Pictures for models that run together: labels in the classes of each, compared with what each answers."""

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

_HINT = "Say which class of the saver is which of the base with --saver-classes: `names`, or a file."


def open_for(
    base: Bundle, places: Sequence[Pictures | None], options: Options
) -> tuple[tuple[Dataset | None, ...], tuple[str, ...]]:
    """Pictures for a base that is a bundle, and what speaks against their labels and is allowed.

    Raises:
        DataError: the data cannot be opened, or its labels do not go together with the answers of the base.
    """
    model, way = base.manifest.model, base.manifest.preprocessing
    with Session(base, registry.find().name, TargetSpec(), allow_untrained=True) as session:
        facts = ModelFacts(model.num_classes, way, model.class_names, options.classes_file)
        opened, doubts = open_labelled(places, facts, answer_of(session))
    return tuple(opened), accept(doubts, allowed=options.allow_suspicious)


def prepare_saver(model: Captured, options: Options) -> Prepared:
    """A model without exits and without pictures yet."""
    return prepare(model, [], data=None, val=None, options=replace(options, precisions=(), sequence=None))


def with_pictures_of(
    model: Ready, base: Ready, mapping: Mapped | None, pictures: Sequence[Dataset | None], options: Options
) -> Ready:
    """A saver with the pictures of its base, labelled in its own classes; a bundle stays as it is.

    Args:
        mapping: see :func:`dyce_export.savers.joint_verification.class_order`.

    Raises:
        DataError: its answers do not go together with the labels.
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
    """What speaks against the classes of a saver, from its records on the pictures of the base.

    Looks at the split ``search`` alone.

    Args:
        name: of the saver.
        order: for every class of the base its index among those of the saver; None if they are the same.
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
