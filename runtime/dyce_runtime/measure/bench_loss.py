"""Measure the accuracy that configurations lose against the uncut model on the same images, with its standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import sqrt
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dyce_runtime.bundle.configuration import Configuration
from dyce_runtime.execution.session import Session
from dyce_runtime.execution.trace import Gates, HeadAnswer, head_answers
from dyce_runtime.inputs.datasets import Dataset
from dyce_runtime.inputs.images import Inputs
from dyce_runtime.program.rule import leaves

_BATCH = 32
# A difference is significant from two standard errors on.
SURE = 2.0


class Pictures(NamedTuple):
    """The labels of the images, in the order of the answers.

    Attributes:
        labels: (N,) int64; None if the images have none.
        class_names: in index order; None if they are not known.
    """

    labels: NDArray[np.int64] | None
    class_names: Sequence[str] | None


class Answers(NamedTuple):
    """Predictions for N images.

    Attributes:
        labels: (N,) int64.
        exits: (N,) int64, index of the exit taken in the manifest's exits.
    """

    labels: NDArray[np.int64]
    exits: NDArray[np.int64]


def answer_all(
    session: Session,
    data: Dataset,
    rows: NDArray[np.int64],
    configurations: Sequence[Configuration],
    progress: Callable[[Iterable[int]], Iterable[int]],
) -> tuple[NDArray[np.int64], list[Answers]]:
    """Classify images with the full model and every configuration, in one pass.

    Every segment and every head runs once for each way in which gates are set; the exits taken follow from the
    thresholds.

    Args:
        session: an open session.
        data: the images.
        rows: indices (N,) of the images to classify.
        configurations: the configurations.
        progress: wraps an iterable of batches, to show progress.

    Returns:
        labels (N,) int64 of the full model, and the answers of each configuration.

    Raises:
        PieceError: a piece failed.
    """
    full, parts, last = [], [], session.manifest.exits[-1]
    settings = {_key(gates): gates for gates in ({}, *(one.gates for one in configurations))}
    for start in progress(range(0, len(rows), _BATCH)):
        images = session.preprocess(data.images(rows[start : start + _BATCH]))
        inputs = session.inputs(images)

        def answers(gates: Gates, inputs: Inputs = inputs) -> dict[tuple[str, str], HeadAnswer]:
            return head_answers(session.device, session.manifest, inputs, gates)

        said = {key: answers(gates) for key, gates in settings.items()}
        full.append(said[_key({})][last.id, last.heads[0].type].label)
        parts.append([_leave(session, one, said[_key(one.gates)]) for one in configurations])
    if not parts:
        none = np.empty(0, np.int64)
        return none, [Answers(none, none) for _ in configurations]
    joined = [Answers(*map(np.concatenate, zip(*several, strict=True))) for several in zip(*parts, strict=True)]
    return np.concatenate(full), joined


def loss_of(
    mine: NDArray[np.int64],
    uncut: NDArray[np.int64],
    labels: NDArray[np.int64] | None,
    allowed: float | None,
    class_names: Sequence[str] | None,
) -> dict[str, Any]:
    """Compute the loss of accuracy of a configuration against the uncut model, as a fraction of all samples.

    The standard error is that of a difference of paired proportions, with half a sample added to each of the four
    outcomes, so that it is not 0 if few samples differ (Agresti and Min, Statistics in Medicine 24, 2005).

    Args:
        mine, uncut, labels: (N,) predictions of the configuration and of the uncut model, and labels (or None), of the
            same samples.
        allowed: the loss that the configuration was allowed when it was chosen; None if there was no limit.
        class_names: in index order; None if they are not known.

    Returns:
        ``loss``, ``loss_error``, ``allowed_loss``, ``worst_class`` and ``loss_verdict``; all but ``allowed_loss`` are
        None without labels. The verdict is ``kept`` or ``exceeded`` if the loss is below or above the allowed one by
        more than two standard errors. Without an allowed loss it is ``none`` or ``loses`` if the loss is below or above
        0 by as much. Otherwise it is ``undecided``.
    """
    if labels is None:
        return {"loss": None, "loss_error": None, "allowed_loss": allowed, "worst_class": None, "loss_verdict": None}
    lost = (uncut == labels).astype(int) - (mine == labels)
    loss, error = float(lost.mean()), paired_error(lost)
    return {
        "loss": loss,
        "loss_error": error,
        "allowed_loss": allowed,
        "worst_class": _worst_class(lost, labels, class_names),
        "loss_verdict": judge(loss, error, allowed),
    }


def paired_error(lost: NDArray[Any]) -> float:
    """Return the standard error of the mean of paired differences (N,) from -1 to 1; see :func:`loss_of`."""
    values, count = lost.astype(np.float64), len(lost) + 2
    return sqrt(float(values @ values) + 1 - float(values.sum()) ** 2 / count) / count


def judge(loss: float, error: float, allowed: float | None) -> str:
    """Return the ``loss_verdict`` of :func:`loss_of`."""
    if loss - (allowed or 0.0) > SURE * error:
        return "loses" if allowed is None else "exceeded"
    if allowed is not None and loss + SURE * error <= allowed:
        return "kept"
    if allowed is None and loss < -SURE * error:
        return "none"
    return "undecided"


def _worst_class(
    lost: NDArray[np.int_], labels: NDArray[np.int64], class_names: Sequence[str] | None
) -> dict[str, Any] | None:
    """Return the class that loses the most correct predictions; None if no class loses any."""
    counts = np.bincount(labels, weights=lost)
    worst = int(counts.argmax())
    if counts[worst] <= 0:
        return None
    name = str(worst) if class_names is None else class_names[worst]
    return {"name": name, "lost": int(counts[worst]), "samples": int((labels == worst).sum())}


def _key(gates: Gates) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((id, str(own)) for id, own in gates.items()))


def _leave(session: Session, configuration: Configuration, said: Mapping[tuple[str, str], HeadAnswer]) -> Answers:
    """Let every sample exit at the first exit that is on and whose confidence is strictly above its threshold."""
    *before, last = session.manifest.exits
    labels = said[last.id, last.heads[0].type].label.copy()
    exits = np.full(len(labels), len(before))
    stay = np.ones(len(labels), np.bool_)
    for index, exit in enumerate(before):
        setting = configuration.exits.get(exit.id)
        if setting is None:
            continue
        answer = said[exit.id, setting.head]
        leave = stay & leaves(answer.score, setting.threshold)
        labels[leave], exits[leave] = answer.label[leave], index
        stay &= ~leave
    return Answers(labels, exits)
