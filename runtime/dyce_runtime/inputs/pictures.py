"""Lazily preprocessed images, for a bundle whose networks differ in their preprocessing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dyce_runtime.bundle.manifest import Preprocessing
from dyce_runtime.inputs.preprocessing import preprocess

Floats = npt.NDArray[np.float32]


class Pictures(Mapping[str, Floats]):
    """A mapping of input names to images (N, C, H, W) float32, which are preprocessed for a network when it runs.

    The images of one input are preprocessed at once, so that an unreadable image is reported at once. Images that exit
    in a saver (a network that runs before the base) are not preprocessed for the base. A file that is needed again is
    read again.

    Attributes:
        count: number of images.
    """

    def __init__(self, pictures: Sequence[Any], ways: Mapping[str, Preprocessing], first: str) -> None:
        """Preprocess images for the input ``first``.

        Args:
            pictures: images as :func:`dyce_runtime.inputs.preprocessing.preprocess` takes them.
            ways: name of each input to its preprocessing.
            first: name of the input that is needed first.

        Raises:
            RuntimeInputError, DataError: see :func:`dyce_runtime.inputs.preprocessing.preprocess`.
        """
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
        """Return the number of inputs."""
        return len(self._ways)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return (C, H, W) of an input."""
        return (len(self._ways[name].mean), *self._ways[name].crop)

    def some(self, name: str, rows: npt.NDArray[np.intp]) -> Floats:
        """Return the images at indices ``rows`` for one input."""
        if name in self._made:
            return self._made[name][rows]
        return preprocess([self._pictures[row] for row in rows.tolist()], self._ways[name])

    def part(self, rows: slice) -> Pictures:
        """Return a range of the images for all inputs, with the preprocessing that has been done already."""
        part = Pictures.__new__(Pictures)
        part._pictures, part._ways = self._pictures[rows], self._ways
        part.count = len(part._pictures)
        part._made = {name: images[rows] for name, images in self._made.items()}
        return part
