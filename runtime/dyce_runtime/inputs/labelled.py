"""Pictures whose labels are known to mean what a model means by them: the one way to open data for a model."""

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
# A model may be worse than was claimed by that share of the pictures, or by four standard errors of it.
_MOST_WORSE, _SURE = 0.10, 4.0

# Where pictures are, or these themselves.
Pictures: TypeAlias = "str | Path | Dataset"


class ModelFacts(NamedTuple):
    """What of a model matters for its data.

    Attributes:
        classes: how many it tells apart.
        preprocessing: how pictures are prepared for it.
        class_names: in index order, if known.
        classes_file: what the user says about class folders, see :func:`dyce_runtime.inputs.datasets.open_dataset`.
        claimed: its accuracy in [0, 1], as whoever trained it says.
    """

    classes: int
    preprocessing: Preprocessing
    class_names: tuple[str, ...] | None = None
    classes_file: Path | None = None
    claimed: float | None = None


def open_labelled(
    places: Sequence[Pictures | None], model: ModelFacts, answer: Answer
) -> tuple[list[Dataset | None], tuple[Doubt, ...]]:
    """Open pictures for a model and compare their labels with what it answers.

    Class folders of which nothing says which class they are get the numbering that the model's answers confirm; further
    places follow it.

    Args:
        places: as in :func:`dyce_runtime.inputs.datasets.open_dataset`, or opened already; None stays None.
        answer: the class (N,) that the model answers for pictures.

    Returns:
        the data sets, without files that cannot be decoded, and what speaks against their labels.

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
    """Raise DataError if the user's list of classes would not be used for any of the places."""
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
    """What the uncut model of a session answers."""
    return lambda pictures: session.run_uncut(session.preprocess(pictures))


def settle(dataset: Dataset, answer: Answer, model: ModelFacts) -> tuple[Dataset, Doubt | None]:
    """Number the class folders of a data set as the model does, and say what speaks against its labels.

    Runs the model on 256 to 1,024 of the pictures, and again on 1,024 if something is in doubt. A data set without
    labels stays as it is.
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
    """Doubt about a model that is right on a share of so many pictures, and far less often than was claimed for it."""
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
    """What the model answers for some of the pictures."""
    batches = np.array_split(rows, -(-len(rows) // _BATCH))
    return np.concatenate([answer(dataset.images(batch)) for batch in batches])
