"""Open labelled images for a model, and check that the labels denote the model's classes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from math import sqrt
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from dyce_runtime.bundle.manifest import Preprocessing
from dyce_runtime.errors import DataError
from dyce_runtime.execution.session import Session
from dyce_runtime.inputs.class_order import (
    CAUSES,
    FEWEST_LABELS,
    Answer,
    Comparison,
    Doubt,
    Labels,
    choose,
    doubt_of,
    doubt_of_folders,
    sample_rows,
)
from dyce_runtime.inputs.datasets import Dataset, has_class_folders, open_dataset

_log = logging.getLogger("dyce_runtime")

_BATCH = 32
# The accuracy of a model may be lower than claimed by this much, or by four standard errors if that is more.
_MOST_WORSE, _SURE = 0.10, 4.0

# The source of images as for ``open_dataset``, or an open data set.
Pictures: TypeAlias = "str | Path | Dataset"


class ModelFacts(NamedTuple):
    """The properties of a model that its data has to match.

    Attributes:
        classes: number of classes.
        preprocessing: how images are prepared for it.
        class_names: in index order; None if they are not known.
        classes_file: the user's list of classes, see :func:`dyce_runtime.inputs.datasets.open_dataset`.
        claimed: its accuracy in [0, 1] according to its checkpoint; None if it is not known.
    """

    classes: int
    preprocessing: Preprocessing
    class_names: tuple[str, ...] | None = None
    classes_file: Path | None = None
    claimed: float | None = None


def open_labelled(
    places: Sequence[Pictures | None], model: ModelFacts, answer: Answer
) -> tuple[list[Dataset | None], tuple[Doubt, ...]]:
    """Open images for a model and compare their labels with the model's predictions.

    If the class indices of class folders are not known, the numbering that agrees best with the predictions is chosen,
    and used for further sources as well.

    Args:
        places: sources as in :func:`dyce_runtime.inputs.datasets.open_dataset`, or open data sets; None stays None.
        model: the properties of the model.
        answer: predicts the classes (N,) int64 of N images.

    Returns:
        the data sets, without files that cannot be decoded, and the doubts about their labels.

    Raises:
        DataError: the data is missing, empty or unreadable, or does not fit the model.
    """
    found: list[Dataset | None] = []
    doubts: list[Doubt] = []
    _check_classes_file(places, model)
    for place in places:
        if place is None:
            found.append(None)
            continue
        dataset, doubt = settle(_opened(place, model), answer, model)
        doubts += [doubt] if doubt else []
        model = model._replace(class_names=model.class_names or dataset.class_names)
        found.append(dataset)
    return found, tuple(doubts)


def _check_classes_file(places: Sequence[Pictures | None], model: ModelFacts) -> None:
    """Raise DataError if the user's list of classes would not be used for any of the sources."""
    named = [place for place in places if place is not None and not isinstance(place, Dataset)]
    if model.classes_file is not None and named and not any(map(has_class_folders, named)):
        raise DataError(
            f"{' and '.join(map(str, named))}: no class folders that {model.classes_file} could map",
            hint="leave out --classes",
        )


def _opened(place: Pictures, model: ModelFacts) -> Dataset:
    if isinstance(place, Dataset):
        return place
    file = model.classes_file if has_class_folders(place) else None
    opened = open_dataset(place, class_names=model.class_names, num_classes=model.classes, classes_file=file)
    return opened.check(model.preprocessing)


def answer_of(session: Session) -> Answer:
    """Return a function that preprocesses images and predicts their classes with the uncut model of a session."""
    return lambda pictures: session.run_uncut(session.preprocess(pictures))


def settle(dataset: Dataset, answer: Answer, model: ModelFacts) -> tuple[Dataset, Doubt | None]:
    """Number the class folders of a data set as the model does, and return the doubt about its labels, if any.

    Runs the model on 256 to 1,024 of the images, and again on 1,024 if there is a doubt. A data set without labels is
    returned as it is.
    """
    if dataset.labels is None:
        return dataset, None
    first = sample_rows(len(dataset), model.classes)
    settled, doubt = _settle(dataset, answer, model, first)
    rows = sample_rows(len(dataset), model.classes, most=True)
    return _settle(dataset, answer, model, rows) if doubt and len(rows) > len(first) else (settled, doubt)


def _settle(
    dataset: Dataset, answer: Answer, model: ModelFacts, rows: npt.NDArray[np.intp]
) -> tuple[Dataset, Doubt | None]:
    ways = dataset.numberings
    options = [dataset.numbered(way, model.classes) for way in ways] or [dataset]
    answers = _ask(dataset, answer, rows)
    found = [Comparison(_labels(option)[rows], answers, model.classes) for option in options]
    best, sure = choose(found)
    if ways:
        doubt = doubt_of_folders(ways, found, best, sure=sure, source=dataset.source)
        how = f"the class folders are numbered {ways[best].name}; "
    else:
        folders = not isinstance(dataset.items, np.ndarray)
        doubt, how = doubt_of(found[0], dataset.source, dataset.class_names, folders=folders), ""
    doubt = doubt or _doubt_of_claim(found[best].agreement, len(rows), model.claimed, dataset.source)
    if doubt is None:
        share, count = 100 * found[best].agreement, len(rows)
        _log.info("%s: %sthe model's answer is the label of %.1f %% of %d pictures", dataset.source, how, share, count)
    return options[best], doubt


def _doubt_of_claim(right: float, count: int, claimed: float | None, source: str) -> Doubt | None:
    """Return the doubt about a model whose accuracy ``right`` on ``count`` images is far below ``claimed``; or None."""
    if claimed is None or count < FEWEST_LABELS:
        return None
    if not claimed - right > max(_MOST_WORSE, _SURE * sqrt(claimed * (1 - claimed) / count)):
        return None
    return Doubt(
        f"the checkpoint claims {100 * claimed:.1f} % for the model; it is right on {100 * right:.1f} % of {count} "
        f"pictures of {source}",
        f"Check {CAUSES}.",
    )


def _labels(dataset: Dataset) -> Labels:
    assert dataset.labels is not None
    return dataset.labels


def _ask(dataset: Dataset, answer: Answer, rows: npt.NDArray[np.intp]) -> Labels:
    """Predict the classes of the images at indices ``rows``, in batches."""
    batches = np.array_split(rows, -(-len(rows) // _BATCH))
    return np.concatenate([answer(dataset.images(batch)) for batch in batches])
