"""Example pictures: which samples of the test split leave first, and which go to the end."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dyce_calibration.records import Records
from dyce_runtime.bundle.configuration import Configuration
from dyce_runtime.bundle.manifest import FINAL, Preprocessing
from dyce_runtime.errors import DataError
from dyce_runtime.inputs.decoding import decode, is_array_file, read_array
from dyce_runtime.program.rule import leaves

if TYPE_CHECKING:
    from PIL import Image

    from dyce_runtime.inputs.decoding import Picture

EACH = 6
LONGEST_EDGE = 96
_RGB = Preprocessing(LONGEST_EDGE, (LONGEST_EDGE, LONGEST_EDGE), "bilinear", (0.5,) * 3, (0.5,) * 3)


@dataclass(frozen=True)
class Example:
    """One picture and where it goes.

    Attributes:
        png: the picture, its longest edge at most 96 pixels.
        label, predicted: class indices.
        exit: id of the exit where it leaves.
        confidence: of the head that it leaves with.
        configuration: name of the configuration under which it leaves there; may be empty.
    """

    png: bytes
    label: int
    exit: str
    confidence: float
    predicted: int
    configuration: str = ""


def choose_examples(
    records: Records, configuration: Configuration, picture: Callable[[int], Picture] | None
) -> tuple[Example, ...]:
    """Six pictures that leave at the first exit that is on, then six that go to the end; fewer if there are fewer.

    Only samples of the split ``test`` are taken: those that the first head is most sure of, and those of the ones
    that go to the end that it is least sure of.

    Args:
        picture: gives the picture of a row of ``records``. None if there are no pictures; the result is then empty.

    Returns:
        Nothing, too, if every exit is off.

    Raises:
        KeyError: the configuration uses a head that was not recorded.
        DataError: a picture cannot be read.
    """
    columns = [records.column(exit, on.head) for exit, on in configuration.exits.items()]
    if picture is None or not columns:
        return ()
    first = min(columns)  # columns stand in execution order
    left = _leaving_columns(records, configuration)
    test = np.flatnonzero(records.split == "test")
    by_confidence = test[np.argsort(-records.scores[test, first], kind="stable")]
    early = by_confidence[left[by_confidence] == first][:EACH]
    late = by_confidence[left[by_confidence] == len(records.heads)][::-1][:EACH]
    exits = (*(exit for exit, _ in records.heads), FINAL)
    return tuple(
        Example(
            png=_to_png(picture(row), row),
            label=int(records.labels[row]),
            exit=exits[left[row]],
            confidence=float(records.scores[row, left[row]]),
            predicted=int(records.predictions[row, left[row]]),
            configuration=configuration.name,
        )
        for row in (*early.tolist(), *late.tolist())
    )


def _leaving_columns(records: Records, configuration: Configuration) -> NDArray[np.int64]:
    """(N,) the column of the head that each sample leaves with: the first that is strictly over its threshold."""
    left = np.full(len(records), len(records.heads))
    for exit, on in configuration.exits.items():
        column = records.column(exit, on.head)
        leave = leaves(records.scores[:, column], on.threshold)
        left[leave] = np.minimum(left[leave], column)
    return left


def _to_png(picture: Picture, row: int) -> bytes:
    try:
        image = _open(picture).copy()
        image.thumbnail((LONGEST_EDGE, LONGEST_EDGE))
        file = io.BytesIO()
        image.save(file, "png", optimize=True)
    except Exception as error:  # what Pillow and arrays of odd shapes raise
        raise DataError(f"the picture of sample {row} of the records cannot be read: {error}") from error
    return file.getvalue()


def _open(picture: Picture) -> Image.Image:
    """In RGB: of an array with other channels the first three, or the first."""
    from PIL import Image

    if isinstance(picture, (str, Path)) and is_array_file(picture):
        picture = read_array(picture)
    if isinstance(picture, np.ndarray):
        return Image.fromarray(_as_bytes(picture)).convert("RGB")
    return decode(picture, _RGB, "the picture")[0]


def _as_bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    """An array (H, W[, C]) as Pillow can show it; floats that leave 0 to 1 from the lowest to the highest."""
    shown = array if array.ndim == 2 else array[..., :3] if array.shape[2] >= 3 else array[..., 0]
    if shown.dtype == np.uint8:
        return np.ascontiguousarray(shown)
    low, high = min(0.0, float(shown.min())), max(1.0, float(shown.max()))
    return ((shown - low) * (255 / (high - low))).astype(np.uint8)
