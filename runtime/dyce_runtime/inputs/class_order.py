"""Check the order of the classes: whether a label denotes the class that the model denotes by the same index.

A class folder says what its images show, but not which output of the model stands for that class: torchvision numbers
folders by their names as strings, timm in natural order, and others by a list. Unless the order is known, the possible
orders are compared with the model's predictions for the labelled images.
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
# A function from N images to the classes (N,) int64 that the model predicts.
Answer: TypeAlias = Callable[[Sequence[Any]], Labels]

# A difference is significant from three standard errors on.
_SURE = 3.0
# With fewer labels, an accuracy near chance is not reported.
FEWEST_LABELS = 200
# Images that the model is run on: per class, and the limits of their total.
_PER_CLASS, _FEWEST, _MOST = 20, 256, 1024
# The most pairs of classes in a message.
_MOST_SHOWN = 24

# The most frequent causes of wrong predictions without an error.
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
    """Why labels may not denote the classes that the model denotes by the same indices, and what to do about it.

    Attributes:
        message: what was found.
        hint: what to do about it.
        order: whether the order of the classes is in doubt.
        assumed: the assumption under which the data is used if the user accepts the doubt; may be empty.
    """

    message: str
    hint: str
    order: bool = False
    assumed: str = ""


def numberings(folders: Sequence[str], classes: int | None) -> tuple[Numbering, ...]:
    """Return the possible numberings of class folders, the likeliest first and without duplicates.

    Args:
        folders: their names.
        classes: number of classes of the model. A numbering by sorted names requires a folder for each of them; None
            allows any number.
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
    """Return a sort key that compares numbers in names by value and ignores case: ``a2`` comes before ``A10``."""
    parts = re.split(r"([0-9]+)", name.lower())
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]


def _positions(folders: Sequence[str], key: Callable[[str], Any] | None) -> dict[str, int]:
    return {name: position for position, name in enumerate(sorted(sorted(folders), key=key))}


def sample_rows(count: int, classes: int, *, most: bool = False) -> npt.NDArray[np.intp]:
    """Return the evenly spaced indices of the images that the model is run on: 20 per class, 256 to 1,024 in all.

    Args:
        count: number of images.
        classes: number of classes.
        most: whether to take 1,024 in any case, to check a doubt again.
    """
    wanted = _MOST if most else min(max(_PER_CLASS * classes, _FEWEST), _MOST)
    return np.unique(np.linspace(0, count - 1, min(wanted, count)).astype(np.intp))


@dataclass(frozen=True)
class Comparison:
    """Labels and a model's predictions for the same samples, both (N,) int64 in [0, classes)."""

    labels: Labels
    answers: Labels
    classes: int

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        """(N,) bool, whether the prediction is the label."""
        right: npt.NDArray[np.bool_] = self.labels == self.answers
        return right

    @property
    def agreement(self) -> float:
        """The fraction of predictions that are the label."""
        return float(self.right.mean())

    @property
    def chance(self) -> float:
        """The expected agreement if labels and predictions were independent, as in Cohen's kappa."""
        shares = [np.bincount(part, minlength=self.classes) / len(part) for part in (self.labels, self.answers)]
        return float(shares[0] @ shares[1])

    @property
    def chance_error(self) -> float:
        """The standard deviation of the agreement over all permutations of the predictions.

        It follows from the variance of a permutation statistic (Hoeffding 1951): if nearly all samples are of one
        class, agreement varies far less by chance than that of independent draws.
        """
        count = len(self.labels)
        rows, columns = (
            np.bincount(part, minlength=self.classes).astype(float) for part in (self.labels, self.answers)
        )
        both = float(rows @ columns)
        squares = both - (float(rows @ columns**2) + float(rows**2 @ columns)) / count + (both / count) ** 2
        return sqrt(max(squares, 0.0) / max(count - 1, 1)) / count

    def by_chance(self) -> bool:
        """Return whether the agreement is less than three standard errors above chance, on at least 200 labels.

        False for labels of a single class: any predictions then agree exactly as often as by chance.
        """
        if len(self.labels) < FEWEST_LABELS or len(np.unique(self.labels)) < 2:
            return False
        return self.agreement < self.chance + _SURE * self.chance_error + 1e-9

    def likeliest(self, rows: slice = slice(None)) -> dict[int, int]:
        """Map each label in some rows to the class that the model most likely uses for it, no class twice.

        Pairs are assigned greedily by their frequency; among equally frequent ones, a label with its own class first.
        """
        pairs, counts = np.unique(np.stack([self.labels[rows], self.answers[rows]], 1), axis=0, return_counts=True)
        other = pairs[:, 0] != pairs[:, 1]
        found: dict[int, int] = {}
        assigned: set[int] = set()
        for label, answer in pairs[np.lexsort((other, -counts))].tolist():
            if label not in found and answer not in assigned:
                found[label] = answer
                assigned.add(answer)
        return found

    def permuted(self) -> bool:
        """Return whether another assignment of labels to classes fits the predictions significantly better.

        The assignment is made on one half of the samples and evaluated on the other, and vice versa.
        """
        fits = np.zeros(len(self.labels), np.bool_)
        for known, judged in ((slice(0, None, 2), slice(1, None, 2)), (slice(1, None, 2), slice(0, None, 2))):
            meant = self.likeliest(known)
            # A label without an assignment keeps its own class, unless that class is assigned to another label.
            mapping = {label: label for label in range(self.classes) if label not in meant.values()} | meant
            fits[judged] = [mapping.get(label) == answer for label, answer in self._pairs(judged)]
        return better(fits, self.right)

    def _pairs(self, rows: slice) -> list[tuple[int, int]]:
        return list(zip(self.labels[rows].tolist(), self.answers[rows].tolist(), strict=True))


def better(these: npt.NDArray[np.bool_], those: npt.NDArray[np.bool_]) -> bool:
    """Return whether ``these`` (N,) has significantly more hits than ``those``: three sigma of McNemar's sign test."""
    gained, lost = int((these & ~those).sum()), int((those & ~these).sum())
    return gained - lost > _SURE * sqrt(gained + lost)


def choose(ways: Sequence[Comparison]) -> tuple[int, bool]:
    """Return the index of the labels that agree best, and whether they are significantly better than all others."""
    best = max(range(len(ways)), key=lambda way: ways[way].agreement)
    return best, all(better(ways[best].right, other.right) for way, other in enumerate(ways) if way != best)


def doubt_of(
    comparison: Comparison, source: str, names: Sequence[str] | None = None, *, folders: bool = True
) -> Doubt | None:
    """Return the doubt about labels whose order is given; None if there is none.

    Args:
        comparison: the labels and the model's predictions.
        source: where the labels come from, for the message.
        names: names of the labels in index order; without them, messages show the numbers.
        folders: whether the labels come from class folders rather than from an array.
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
    """Return the doubt about the best numbering of class folders whose order is not known; None if there is none.

    Args:
        ways: the possible numberings.
        found: for every numbering, its labels and the model's predictions.
        best, sure: the result of :func:`choose`.
        source: where the labels come from, for the message.
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
    """Describe the likeliest mapping of labels to classes, up to 24 pairs, those that differ first.

    Args:
        changed: whether to leave out labels that are mapped to their own class.
    """
    meant = comparison.likeliest()
    if changed:
        meant = {label: answer for label, answer in meant.items() if label != answer}
    order = sorted(meant, key=lambda label: (meant[label] == label, label))
    known = names if isinstance(names, Mapping) else dict(enumerate(names or ()))
    shown = [f"{known.get(label, label)} -> {meant[label]}" for label in order[:_MOST_SHOWN]]
    return ", ".join(shown) + (", ..." if len(order) > _MOST_SHOWN else "")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
