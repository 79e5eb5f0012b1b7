"""The order of the classes: does the label of a picture mean the class that the model means by that index?

A class folder says what its pictures show. It does not say which output of the model stands for that: torchvision
numbers folders in the order of their names as strings, timm in natural order, others by a list. So unless the order is
known, the possible orders are compared with what the model answers on the labelled pictures.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Labels: TypeAlias = npt.NDArray[np.int64]
# From pictures to the class (N,) int64 that the model answers for each.
Answer: TypeAlias = Callable[[Sequence[Any]], Labels]

# Differences count from three standard errors on.
_SURE = 3.0
# An accuracy near chance says something from that many labels on.
FEWEST_LABELS = 200
_PER_CLASS, _FEWEST, _MOST = 20, 256, 1024
_MOST_SHOWN = 24

# What spoils answers without an error, most often.
CAUSES = "the order of the classes, --mean and --std, RGB or BGR, the size of the input"


_OR_CHECK = f"If it is right already, check {CAUSES}."
_HOW_TO_GIVE = (
    "Give the order with --classes FILE: a folder name per line in the order of the model's classes, or JSON "
    '{"folder": index}. '
    f"{_OR_CHECK}"
)


class Numbering(NamedTuple):
    """A way to number class folders.

    Attributes:
        name: completes the sentence "the class folders are numbered ...".
        indices: the class index of each folder.
    """

    name: str
    indices: Mapping[str, int]


class Doubt(NamedTuple):
    """Why labels may not mean what the model means, and what to do about it.

    Attributes:
        order: whether it is the order of the classes that is in doubt.
        assumed: what is taken to be so where the doubt is allowed; may be empty.
    """

    message: str
    hint: str
    order: bool = False
    assumed: str = ""


def numberings(folders: Sequence[str], classes: int | None) -> tuple[Numbering, ...]:
    """The ways in which class folders may be numbered, the likeliest first; those that come to the same once.

    Args:
        folders: their names.
        classes: how many the model has. A sorted order needs a folder for each of them; None allows any number.
    """
    ways: list[Numbering] = []
    if all(name.isascii() and name.isdecimal() for name in folders):
        index = {name: int(name) for name in folders}
        if len(set(index.values())) == len(folders) and (classes is None or max(index.values()) < classes):
            ways.append(Numbering("by their names as numbers", index))
    if classes is None or classes == len(folders):
        ways.append(Numbering("in the order of their names as strings, as torchvision does", _positions(folders, None)))
        ways.append(Numbering("in the natural order of their names, as timm does", _positions(folders, natural_key)))
    found: list[Numbering] = []
    for way in ways:
        if all(way.indices != other.indices for other in found):
            found.append(way)
    return tuple(found)


def natural_key(name: str) -> list[tuple[bool, int, str]]:
    """Sorts names with numbers in them by the value of these, without regard to case: ``a2`` before ``A10``."""
    parts = re.split(r"([0-9]+)", name.lower())
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]


def _positions(folders: Sequence[str], key: Callable[[str], Any] | None) -> dict[str, int]:
    return {name: position for position, name in enumerate(sorted(sorted(folders), key=key))}


def sample_rows(count: int, classes: int, *, most: bool = False) -> npt.NDArray[np.intp]:
    """Which of ``count`` pictures are shown to the model: 20 for each class, 256 to 1,024 in all, spread evenly.

    Args:
        most: 1,024 in any case, to look again where something is in doubt.
    """
    wanted = _MOST if most else min(max(_PER_CLASS * classes, _FEWEST), _MOST)
    return np.unique(np.linspace(0, count - 1, min(wanted, count)).astype(np.intp))


@dataclass(frozen=True)
class Comparison:
    """Labels next to what a model answers, both (N,) int64 in [0, classes)."""

    labels: Labels
    answers: Labels
    classes: int

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        """(N,) where the answer is the label."""
        right: npt.NDArray[np.bool_] = self.labels == self.answers
        return right

    @property
    def agreement(self) -> float:
        """The share of answers that are the label."""
        return float(self.right.mean())

    @property
    def chance(self) -> float:
        """The share that would be right if labels and answers had nothing to do with each other (Cohen's kappa)."""
        shares = [np.bincount(part, minlength=self.classes) / len(part) for part in (self.labels, self.answers)]
        return float(shares[0] @ shares[1])

    @property
    def chance_error(self) -> float:
        """The standard error of that share, over all ways to hand out the same answers to the same samples.

        The variance of a permutation statistic (Hoeffding 1951): where one class is nearly everything, agreement varies
        far less by chance than that of independent draws.
        """
        count = len(self.labels)
        rows, columns = (
            np.bincount(part, minlength=self.classes).astype(float) for part in (self.labels, self.answers)
        )
        both = float(rows @ columns)
        squares = both - (float(rows @ columns**2) + float(rows**2 @ columns)) / count + (both / count) ** 2
        return sqrt(max(squares, 0.0) / max(count - 1, 1)) / count

    def by_chance(self) -> bool:
        """Whether the agreement is within three standard errors of chance or below, on at least 200 labels.

        Labels of a single class say nothing: whatever the model answers agrees as often as by chance.
        """
        if len(self.labels) < FEWEST_LABELS or len(np.unique(self.labels)) < 2:
            return False
        return self.agreement < self.chance + _SURE * self.chance_error + 1e-9

    def likeliest(self, rows: slice = slice(None)) -> dict[int, int]:
        """For labels of some rows the class that the model most likely means: each label one, no class twice.

        Pairs are taken greedily by how often they occur, a label with its own class before others.
        """
        pairs, counts = np.unique(np.stack([self.labels[rows], self.answers[rows]], 1), axis=0, return_counts=True)
        other = pairs[:, 0] != pairs[:, 1]
        found: dict[int, int] = {}
        taken: set[int] = set()
        for label, answer in pairs[np.lexsort((other, -counts))].tolist():
            if label not in found and answer not in taken:
                found[label] = answer
                taken.add(answer)
        return found

    def permuted(self) -> bool:
        """Whether another assignment of the labels fits the answers better, surely.

        The assignment is made on one half of the samples and judged on the other, and the reverse.
        """
        fits = np.zeros(len(self.labels), np.bool_)
        for known, judged in ((slice(0, None, 2), slice(1, None, 2)), (slice(1, None, 2), slice(0, None, 2))):
            meant = self.likeliest(known)
            # A label whose class was given away means none: two labels for one class are no order.
            left = {label: label for label in range(self.classes) if label not in meant.values()} | meant
            fits[judged] = [left.get(label) == answer for label, answer in self._pairs(judged)]
        return better(fits, self.right)

    def _pairs(self, rows: slice) -> list[tuple[int, int]]:
        return list(zip(self.labels[rows].tolist(), self.answers[rows].tolist(), strict=True))


def better(these: npt.NDArray[np.bool_], those: npt.NDArray[np.bool_]) -> bool:
    """Whether more of these (N,) hits than of those are by more than chance: three sigma of McNemar's sign test."""
    gained, lost = int((these & ~those).sum()), int((those & ~these).sum())
    return gained - lost > _SURE * sqrt(gained + lost)


def choose(ways: Sequence[Comparison]) -> tuple[int, bool]:
    """The index of the labels that agree best with the answers, and whether that is sure against all the others."""
    best = max(range(len(ways)), key=lambda way: ways[way].agreement)
    return best, all(better(ways[best].right, other.right) for way, other in enumerate(ways) if way != best)


def doubt_of(
    comparison: Comparison, source: str, names: Sequence[str] | None = None, *, folders: bool = True
) -> Doubt | None:
    """What speaks against labels whose order is given; None if nothing does.

    Args:
        source: where the labels come from, for the message.
        names: what a label is called; its number without.
        folders: whether they come from class folders, or are numbers in an array.
    """
    count = len(comparison.labels)
    seen = f"{source}: the model's answer is the label of {_percent(comparison.agreement)} of {count} pictures"
    if comparison.permuted():
        return Doubt(
            f"{seen}, and of many more if the classes have another order; likeliest, label -> class of the model: "
            f"{_mapping(comparison, names, changed=True)}",
            _HOW_TO_GIVE if folders else f"Number the labels as the model numbers its classes. {_OR_CHECK}",
            order=True,
        )
    if comparison.by_chance():
        chance = _percent(comparison.chance)
        return Doubt(f"{seen}, which is no better than chance ({chance} with such answers)", f"Check {CAUSES}.")
    return None


def doubt_of_folders(
    ways: Sequence[Numbering], found: Sequence[Comparison], best: int, *, sure: bool, source: str
) -> Doubt | None:
    """What speaks against the best numbering of class folders, of which nothing is known; None if nothing does.

    Args:
        found: for every numbering its labels next to the answers.
        best, sure: see :func:`choose`.
    """
    names = {index: name for name, index in ways[best].indices.items()}
    permuted = found[best].permuted()
    if sure and not permuted and not found[best].by_chance():
        return None
    tried = "; ".join(
        f"{_percent(one.agreement)} are right if they are numbered {way.name}"
        for way, one in zip(ways, found, strict=True)
    )
    count = len(found[best].labels)
    assumed = f"The class folders are numbered {ways[best].name}"
    message = f"{source}: nothing says which class folder is which class of the model. Of {count} answers {tried}"
    if permuted:
        likeliest = f"Likeliest, folder -> class: {_mapping(found[best], names)}"
        return Doubt(f"{message}. {likeliest}", _HOW_TO_GIVE, True, assumed)
    if found[best].by_chance():
        chance = _percent(found[best].chance)
        message = f"{message}, which is no better than chance ({chance} with such answers)"
        return Doubt(message, f"Check {CAUSES}.", True, assumed)
    return Doubt(f"{message}, too few to tell", _HOW_TO_GIVE, True, assumed)


def _mapping(comparison: Comparison, names: Sequence[str] | Mapping[int, str] | None, *, changed: bool = False) -> str:
    """The labels that seem to mean another class first, or they alone; as many as fit into a message."""
    meant = comparison.likeliest()
    if changed:
        meant = {label: answer for label, answer in meant.items() if label != answer}
    order = sorted(meant, key=lambda label: (meant[label] == label, label))
    known = names if isinstance(names, Mapping) else dict(enumerate(names or ()))
    shown = [f"{known.get(label, label)} -> {meant[label]}" for label in order[:_MOST_SHOWN]]
    return ", ".join(shown) + (", ..." if len(order) > _MOST_SHOWN else "")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
