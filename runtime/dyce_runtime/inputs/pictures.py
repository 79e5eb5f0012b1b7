"""Pictures on their way into a bundle whose networks prepare them in different ways."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dyce_runtime.bundle.manifest import Preprocessing
from dyce_runtime.inputs.preprocessing import preprocess

Floats = npt.NDArray[np.float32]


class Pictures(Mapping[str, Floats]):
    """Pictures as networks read them, (N, C, H, W) by the name of the input; prepared for a network when it runs.

    For one input they are prepared at once, so that a picture that cannot be read shows at once. What a saver
    answers is never prepared for the base; a file that is needed again is read again.

    Attributes:
        count: of the pictures.
    """

    def __init__(self, pictures: Sequence[Any], ways: Mapping[str, Preprocessing], first: str) -> None:
        """Prepare for the input ``first``. Raises what :func:`dyce_runtime.inputs.preprocessing.preprocess` raises."""
        self.count = len(pictures)
        self._pictures, self._ways = pictures, ways
        self._made = {first: preprocess(pictures, ways[first])}

    def __getitem__(self, name: str) -> Floats:
        if name not in self._made:
            self._made[name] = preprocess(self._pictures, self._ways[name])
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._ways)

    def __len__(self) -> int:
        """The number of inputs."""
        return len(self._ways)

    def shape(self, name: str) -> tuple[int, ...]:
        """(C, H, W) of an input."""
        return (len(self._ways[name].mean), *self._ways[name].crop)

    def some(self, name: str, rows: npt.NDArray[np.intp]) -> Floats:
        """Some of the pictures for one input."""
        if name in self._made:
            return self._made[name][rows]
        return preprocess([self._pictures[row] for row in rows.tolist()], self._ways[name])

    def part(self, rows: slice) -> Pictures:
        """Some of the pictures for all inputs; what is prepared is not prepared again."""
        part = Pictures.__new__(Pictures)
        part._pictures, part._ways = self._pictures[rows], self._ways
        part.count = len(part._pictures)
        part._made = {name: images[rows] for name, images in self._made.items()}
        return part
