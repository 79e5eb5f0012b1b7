"""Records: the prediction, score, loss and cost of every head for every sample, which is all that a search needs."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dyce_runtime.arguments import shown
from dyce_runtime.bundle.arrays import read_arrays
from dyce_runtime.errors import DataError

# Names of the arrays with one value per sample and head, and of those with one value per sample.
_OF_HEADS = ("predictions", "scores", "loss", "cost")
_OF_SAMPLES = ("labels", "hashes", "split", "variant")
# The kind of numpy's type that each has.
_KINDS = {"predictions": "i", "labels": "i", "hashes": "u", "split": "U", "variant": "U"} | dict.fromkeys(
    ("scores", "loss", "cost"), "f"
)
_TYPES = {"i": "int64", "u": "uint64", "f": "float32", "U": "text"}


@dataclass(frozen=True)
class Records:
    """The results of all heads for the same samples: a table with a row per sample, or per sample and variant.

    Attributes:
        heads: (exit id, head type) of each column except the last, in execution order. The last column is the
            model's own classifier (the final head).
        predictions: (N, heads + 1) int64, the predicted classes.
        scores: (N, heads + 1) float32 in [0, 1], which are compared with thresholds. The manifest names them; with
            single labels they are the confidences.
        loss: (N, heads + 1) float32 in [0, 1]: how wrong each prediction is; 0 or 1 with single labels.
        cost: (N, heads + 1) float32 in [0, 1]: the fraction of the backbone up to each head that ran for the sample;
            1 if no gate skips anything.
        labels: (N,) int64, the true classes.
        hashes: (N,) uint64, content hashes of the samples.
        split: (N,) name of the split of each sample.
        variant: (N,) name of the gates' setting under which the row was recorded, on which all later activations
            depend; empty without gates.
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
        """Return records of a classifier without gates: a wrong prediction has loss 1, and all costs are 1.

        The arrays have the shapes and types of the attributes and are not copied.
        """
        cost, variant = np.ones(predictions.shape, np.float32), np.full(len(labels), "")
        return Records(heads, predictions, scores, _zero_one(predictions, labels), cost, labels, hashes, split, variant)

    def __len__(self) -> int:
        return len(self.labels)

    def of_split(self, name: str) -> Records:
        """Return the records of one split."""
        return self.take(self.split == name)

    def take(self, rows: NDArray[np.bool_] | NDArray[np.intp]) -> Records:
        """Return the records of some samples, by a mask (N,) or by indices (n,)."""
        return replace(self, **{name: getattr(self, name)[rows] for name in (*_OF_HEADS, *_OF_SAMPLES)})

    def with_columns(self, columns: list[int]) -> Records:
        """Return the records of some heads, by their columns, and of the final head."""
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
        """Return records of the same samples with further heads of a single-label task before the column ``place``.

        Args:
            heads: (exit id, head type) of each further head.
            predictions, scores, cost: (N, further heads), like the attributes; None for ``cost`` means 1 everywhere.
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
        """Return a copy with other predictions (N, heads + 1) or labels (N,), and the single-label loss of both."""
        predictions = self.predictions if predictions is None else predictions
        labels = self.labels if labels is None else labels
        return replace(self, predictions=predictions, labels=labels, loss=_zero_one(predictions, labels))

    def column(self, exit: str, head: str) -> int:
        """Return the column of a head. Raises KeyError if it was not recorded."""
        try:
            return self.heads.index((exit, head))
        except ValueError:
            raise KeyError((exit, head)) from None

    def accuracy(self, column: int = -1) -> float:
        """Return 1 minus the mean loss of a head, by default of the final one; NaN without samples."""
        return 1.0 - float(self.loss[:, column].mean(dtype=np.float64))

    def save(self, path: Path) -> None:
        """Write the records to an ``.npz`` file."""
        exits, types = ([head[part] for head in self.heads] for part in (0, 1))
        arrays = {name: getattr(self, name) for name in (*_OF_HEADS, *_OF_SAMPLES)}
        np.savez_compressed(path, exit=np.array(exits, np.str_), head=np.array(types, np.str_), **arrays)

    @staticmethod
    def load(path: Path) -> Records:
        """Read a file written by :meth:`save`. Raises DataError if it does not hold valid records."""
        file = read_arrays(path, "records", error=DataError)
        try:
            heads = tuple(zip(file.pop("exit").tolist(), file.pop("head").tolist(), strict=True))
            return Records(heads, **{field.name: file[field.name] for field in fields(Records)[1:]}).check()
        except (KeyError, ValueError, TypeError, DataError) as error:
            raise DataError(f"{path} does not hold records: {error}") from error

    def check(self) -> Records:
        """Return the records. Raises DataError if shapes or types do not match, or a number is not in [0, 1]."""
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
    """Return the single-label loss (N, heads) float32: 1 where a prediction (N, heads) differs from the label (N,)."""
    wrong: NDArray[np.bool_] = predictions != labels[:, None]
    return wrong.astype(np.float32)
