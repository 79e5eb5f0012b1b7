"""Records: what every head answered to every sample, what that lost, and what it cost. All that a search needs."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dyce_runtime.arguments import shown
from dyce_runtime.bundle.arrays import read_arrays
from dyce_runtime.errors import DataError

# What each array holds, one value for each sample or one for each sample and head.
_OF_HEADS = ("predictions", "scores", "loss", "cost")
_OF_SAMPLES = ("labels", "hashes", "split", "variant")
# The kind of numpy's type that each has.
_KINDS = {"predictions": "i", "labels": "i", "hashes": "u", "split": "U", "variant": "U"} | dict.fromkeys(
    ("scores", "loss", "cost"), "f"
)
_TYPES = {"i": "int64", "u": "uint64", "f": "float32", "U": "text"}


@dataclass(frozen=True)
class Records:
    """The answers of all heads to the same samples: a table with a row for each sample, or for each sample and variant.

    Attributes:
        heads: (exit id, head type) of each column but the last, in execution order; the last column is the
            model's own classifier.
        predictions: (N, heads + 1) int64, the class that each head answers.
        scores: (N, heads + 1) float32, from 0 to 1: what is compared with a threshold. The task names it in the
            manifest; with a single label it is the confidence.
        loss: (N, heads + 1) float32, from 0 to 1: how wrong each answer is; with a single label 0 or 1.
        cost: (N, heads + 1) float32, from 0 to 1: the share of the backbone up to each head that ran for the sample;
            1 where no gate leaves out anything.
        labels: (N,) int64, the true classes.
        hashes: (N,) uint64, content of each sample.
        split: (N,) name of the split of each sample.
        variant: (N,) name of the gates' setting under which the row was recorded, since every later activation depends
            on it; empty without gates.
    """

    heads: tuple[tuple[str, str], ...]
    predictions: NDArray[np.int64]
    scores: NDArray[np.float32]
    loss: NDArray[np.float32]
    cost: NDArray[np.float32]
    labels: NDArray[np.int64]
    hashes: NDArray[np.uint64]
    split: NDArray[np.str_]
    variant: NDArray[np.str_]

    @staticmethod
    def of_single_label(
        heads: tuple[tuple[str, str], ...],
        predictions: NDArray[np.int64],
        scores: NDArray[np.float32],
        labels: NDArray[np.int64],
        hashes: NDArray[np.uint64],
        split: NDArray[np.str_],
    ) -> Records:
        """Records of a classifier without gates: a wrong answer loses 1, and every sample pays for the whole backbone.

        The arrays are those of the class and are kept, not copied.
        """
        cost, variant = np.ones(predictions.shape, np.float32), np.full(len(labels), "")
        return Records(heads, predictions, scores, _zero_one(predictions, labels), cost, labels, hashes, split, variant)

    def __len__(self) -> int:
        return len(self.labels)

    def of_split(self, name: str) -> Records:
        """The records of one split."""
        return self.take(self.split == name)

    def take(self, rows: NDArray[np.bool_] | NDArray[np.intp]) -> Records:
        """The records of some samples: those where ``rows``, (N,), is true, or those at these indices."""
        return replace(self, **{name: getattr(self, name)[rows] for name in (*_OF_HEADS, *_OF_SAMPLES)})

    def with_columns(self, columns: list[int]) -> Records:
        """The records of some heads, by their columns, and of the model's own classifier."""
        kept = [*columns, len(self.heads)]
        arrays = {name: getattr(self, name)[:, kept] for name in _OF_HEADS}
        return replace(self, heads=tuple(self.heads[column] for column in columns), **arrays)

    def insert(
        self,
        place: int,
        heads: tuple[tuple[str, str], ...],
        predictions: NDArray[np.int64],
        scores: NDArray[np.float32],
        cost: NDArray[np.float32] | None = None,
    ) -> Records:
        """The same samples with further heads of a single-label task before the column ``place``.

        Args:
            predictions, scores, cost: (N, further heads), as in the class; without ``cost`` nothing is left out.
        """
        further: dict[str, NDArray[Any]] = {
            "predictions": predictions,
            "scores": scores,
            "loss": _zero_one(predictions, self.labels),
            "cost": np.ones_like(scores) if cost is None else cost,
        }
        at = [place] * len(heads)
        arrays = {name: np.insert(getattr(self, name), at, further[name], axis=1) for name in _OF_HEADS}
        return replace(self, heads=(*self.heads[:place], *heads, *self.heads[place:]), **arrays)

    def with_classes(
        self, predictions: NDArray[np.int64] | None = None, labels: NDArray[np.int64] | None = None
    ) -> Records:
        """The same with other predictions or labels of a single-label task, and the loss that follows from both."""
        predictions = self.predictions if predictions is None else predictions
        labels = self.labels if labels is None else labels
        return replace(self, predictions=predictions, labels=labels, loss=_zero_one(predictions, labels))

    def column(self, exit: str, head: str) -> int:
        """The column of a head. Raises KeyError if it was not recorded."""
        try:
            return self.heads.index((exit, head))
        except ValueError:
            raise KeyError((exit, head)) from None

    def accuracy(self, column: int = -1) -> float:
        """1 - the mean loss of a head, by default of the model's own classifier; NaN without samples."""
        return 1.0 - float(self.loss[:, column].mean(dtype=np.float64))

    def save(self, path: Path) -> None:
        """Write an ``.npz``."""
        exits, types = ([head[part] for head in self.heads] for part in (0, 1))
        arrays = {name: getattr(self, name) for name in (*_OF_HEADS, *_OF_SAMPLES)}
        np.savez_compressed(path, exit=np.array(exits, np.str_), head=np.array(types, np.str_), **arrays)

    @staticmethod
    def load(path: Path) -> Records:
        """Read an ``.npz`` that :meth:`save` wrote. Raises DataError if it is something else."""
        file = read_arrays(path, "records", error=DataError)
        try:
            heads = tuple(zip(file.pop("exit").tolist(), file.pop("head").tolist(), strict=True))
            return Records(heads, **{field.name: file[field.name] for field in fields(Records)[1:]}).check()
        except (KeyError, ValueError, TypeError, DataError) as error:
            raise DataError(f"{path} does not hold records: {error}") from error

    def check(self) -> Records:
        """Return the records. Raises DataError if shapes or types do not fit, or numbers from 0 to 1 are not."""
        if len({*self.heads}) < len(self.heads) or not all(
            isinstance(name, str) for head in self.heads for name in head
        ):
            raise DataError(f"the records' heads are {shown(self.heads)}; expected pairs of names, each once")
        count = len(self.labels)
        for name, wanted in [
            *((name, (count, len(self.heads) + 1)) for name in _OF_HEADS),
            *((name, (count,)) for name in _OF_SAMPLES),
        ]:
            array = getattr(self, name)
            if array.shape != wanted:
                raise DataError(f"the records' {name} have shape {array.shape}; expected {wanted}")
            if array.dtype.kind != _KINDS[name]:
                raise DataError(f"the records' {name} are of type {array.dtype}; expected {_TYPES[_KINDS[name]]}")
        for name in ("scores", "loss", "cost"):
            values = getattr(self, name)
            strange = ~((values >= 0) & (values <= 1))
            if strange.any():
                row, column = np.argwhere(strange)[0]
                raise DataError(
                    f"the records' {name} hold {values[row, column]} for sample {row} in column {column}; "
                    "expected a number from 0 to 1"
                )
        return self


def _zero_one(predictions: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.float32]:
    """The loss of single labels: 1 where the prediction (N, heads) is not the label (N,)."""
    wrong: NDArray[np.bool_] = predictions != labels[:, None]
    return wrong.astype(np.float32)
