"""Records: for every sample, what each head said and how sure it was. All that a search needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dyce_runtime.bundle.arrays import read_arrays
from dyce_runtime.errors import DataError


@dataclass(frozen=True)
class Records:
    """Predictions and confidences of all heads on the same samples.

    Attributes:
        heads: (exit id, head type) of each column but the last, in execution order; the last column is the
            model's own classifier.
        predictions: (N, heads + 1) int64.
        confidences: (N, heads + 1) float32, from 0 to 1.
        labels: (N,) int64.
        hashes: (N,) uint64, content of each sample.
        split: (N,) name of the split of each sample.
    """

    heads: tuple[tuple[str, str], ...]
    predictions: NDArray[np.int64]
    confidences: NDArray[np.float32]
    labels: NDArray[np.int64]
    hashes: NDArray[np.uint64]
    split: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.labels)

    def of_split(self, name: str) -> Records:
        """The records of one split."""
        return self.take(self.split == name)

    def take(self, rows: NDArray[np.bool_] | NDArray[np.intp]) -> Records:
        """The records of some samples: those where ``rows``, (N,), is true, or those at these indices."""
        return Records(
            self.heads,
            self.predictions[rows],
            self.confidences[rows],
            self.labels[rows],
            self.hashes[rows],
            self.split[rows],
        )

    def column(self, exit: str, head: str) -> int:
        """The column of a head. Raises KeyError if it was not recorded."""
        try:
            return self.heads.index((exit, head))
        except ValueError:
            raise KeyError((exit, head)) from None

    def save(self, path: Path) -> None:
        """Write an ``.npz``."""
        np.savez_compressed(
            path,
            exit=np.array([exit for exit, _ in self.heads], np.str_),
            head=np.array([head for _, head in self.heads], np.str_),
            predictions=self.predictions,
            confidences=self.confidences,
            labels=self.labels,
            hashes=self.hashes,
            split=self.split,
        )

    @staticmethod
    def load(path: Path) -> Records:
        """Read an ``.npz`` that :meth:`save` wrote. Raises DataError if it is something else."""
        file = read_arrays(path, "records", error=DataError)
        try:
            heads = tuple(zip(file["exit"].tolist(), file["head"].tolist(), strict=True))
            records = Records(
                heads, file["predictions"], file["confidences"], file["labels"], file["hashes"], file["split"]
            )
            return records.check()
        except (KeyError, ValueError, TypeError, DataError) as error:
            raise DataError(f"{path} does not hold records: {error}") from error

    def check(self) -> Records:
        """Return the records. Raises DataError if shapes do not fit, or a confidence is not from 0 to 1."""
        count = len(self.labels)
        for name, wanted in [
            *((name, (count, len(self.heads) + 1)) for name in ("predictions", "confidences")),
            *((name, (count,)) for name in ("labels", "hashes", "split")),
        ]:
            if (found := getattr(self, name).shape) != wanted:
                raise DataError(f"the records' {name} have shape {found}; expected {wanted}")
        strange = ~((self.confidences >= 0) & (self.confidences <= 1))
        if strange.any():
            row, column = np.argwhere(strange)[0]
            raise DataError(
                f"the records' confidence of sample {row} in column {column} is {self.confidences[row, column]}; "
                "expected a number from 0 to 1"
            )
        return self
