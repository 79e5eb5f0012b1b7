"""What a configuration loses against the uncut model: answered on the same pictures, with the error of that figure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import sqrt
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dyce_runtime.bundle.configuration import Configuration
from dyce_runtime.execution.session import Session
from dyce_runtime.execution.trace import HeadAnswer, head_answers
from dyce_runtime.inputs.datasets import Dataset
from dyce_runtime.program.rule import leaves

_BATCH = 32
# A difference counts from two standard errors on.
SURE = 2.0


class Pictures(NamedTuple):
    """What is known of the pictures, in the order of the answers.

    Attributes:
        labels: (N,) int64; None without any.
        class_names: in index order, if known.
    """

    labels: NDArray[np.int64] | None
    class_names: Sequence[str] | None


class Answers(NamedTuple):
    """What was answered.

    Attributes:
        labels: (N,) int64.
        exits: (N,) int64, index into the manifest's exits.
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
    """Answers (N,) of the full model and of every configuration to some of the pictures, all from one pass.

    Every segment and every head runs once; where a sample leaves follows from the thresholds.

    Raises:
        PieceError: a piece failed.
    """
    full, parts, last = [], [], session.manifest.exits[-1]
    for start in progress(range(0, len(rows), _BATCH)):
        images = session.preprocess(data.images(rows[start : start + _BATCH]))
        said = head_answers(session.device, session.manifest, session.inputs(images))
        full.append(said[last.id, last.heads[0].type].label)
        parts.append([_leave(session, configuration, said) for configuration in configurations])
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
    """What there is to say of a loss, as a fraction of all samples; None without labels.

    The standard error is that of a difference of paired proportions, with half a sample added to each of the four
    outcomes, so that it is not 0 where few samples differ (Agresti and Min, Statistics in Medicine 24, 2005).

    Args:
        mine, uncut, labels: (N,) of the same samples.
        allowed: what it may lose as it was chosen; None if nothing was said.

    Returns:
        ``loss``, ``loss_error``, ``allowed_loss``, ``worst_class`` and ``loss_verdict``: ``kept`` or ``exceeded`` where
        the loss is under or over what is allowed by more than two standard errors, ``none`` or ``loses`` the same
        against nothing where nothing was said, ``undecided`` otherwise.
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
    """The ``loss_verdict`` of :func:`loss_of`."""
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
    """The class that loses most right answers; None if none loses any."""
    counts = np.bincount(labels, weights=lost)
    worst = int(counts.argmax())
    if counts[worst] <= 0:
        return None
    name = str(worst) if class_names is None else class_names[worst]
    return {"name": name, "lost": int(counts[worst]), "samples": int((labels == worst).sum())}


def _leave(session: Session, configuration: Configuration, said: Mapping[tuple[str, str], HeadAnswer]) -> Answers:
    """Every sample leaves at the first exit that is on and whose confidence is strictly above its threshold."""
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
