"""Example images: test samples that exit first, and test samples that reach the final head."""

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
    """An image and the exit that it takes.

    Attributes:
        png: the image as PNG, its longest edge at most 96 pixels.
        label, predicted: class indices.
        exit: id of the exit taken.
        confidence: confidence of the head taken.
        configuration: name of the configuration under which the exit is taken; may be empty.
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
    """Choose six images that exit at the first enabled exit, then six that reach the final head, or fewer.

    Only samples of the split ``test`` are considered: those of which the first head is most confident, and, among those
    that reach the final head, those of which the first head is least confident.

    Args:
        picture: returns the image of a row of ``records``. None if there are no images; the result is then empty.

    Returns:
        the examples; empty, too, if every exit is off.

    Raises:
        KeyError: the configuration uses a head that was not recorded.
        DataError: an image cannot be read.
    """
    columns = [records.column(exit, on.head) for exit, on in configuration.exits.items()]
    if picture is None or not columns:
        return ()
    first = min(columns)  # columns are in execution order
    exit_columns = _leaving_columns(records, configuration)
    test = np.flatnonzero(records.split == "test")
    by_confidence = test[np.argsort(-records.scores[test, first], kind="stable")]
    early = by_confidence[exit_columns[by_confidence] == first][:EACH]
    late = by_confidence[exit_columns[by_confidence] == len(records.heads)][::-1][:EACH]
    exits = (*(exit for exit, _ in records.heads), FINAL)
    return tuple(
        Example(
            png=_to_png(picture(row), row),
            label=int(records.labels[row]),
            exit=exits[exit_columns[row]],
            confidence=float(records.scores[row, exit_columns[row]]),
            predicted=int(records.predictions[row, exit_columns[row]]),
            configuration=configuration.name,
        )
        for row in (*early.tolist(), *late.tolist())
    )


def _leaving_columns(records: Records, configuration: Configuration) -> NDArray[np.int64]:
    """Return for each sample the column of the first head whose confidence is strictly over its threshold, (N,)."""
    exit_columns = np.full(len(records), len(records.heads))
    for exit, on in configuration.exits.items():
        column = records.column(exit, on.head)
        leave = leaves(records.scores[:, column], on.threshold)
        exit_columns[leave] = np.minimum(exit_columns[leave], column)
    return exit_columns


def _to_png(picture: Picture, row: int) -> bytes:
    try:
        image = _open(picture).copy()
        image.thumbnail((LONGEST_EDGE, LONGEST_EDGE))
        file = io.BytesIO()
        image.save(file, "png", optimize=True)
    except Exception as error:  # Pillow raises various errors, as do arrays of unexpected shapes
        raise DataError(f"the picture of sample {row} of the records cannot be read: {error}") from error
    return file.getvalue()


def _open(picture: Picture) -> Image.Image:
    """Open an image in RGB; of an array with more channels the first three are used, of one with fewer the first."""
    from PIL import Image

    if isinstance(picture, (str, Path)) and is_array_file(picture):
        picture = read_array(picture)
    if isinstance(picture, np.ndarray):
        return Image.fromarray(_as_bytes(picture)).convert("RGB")
    return decode(picture, _RGB, "the picture")[0]


def _as_bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Convert an array (H, W[, C]) for Pillow; floats outside 0 to 1 are rescaled from lowest to highest value."""
    shown = array if array.ndim == 2 else array[..., :3] if array.shape[2] >= 3 else array[..., 0]
    if shown.dtype == np.uint8:
        return np.ascontiguousarray(shown)
    low, high = min(0.0, float(shown.min())), max(1.0, float(shown.max()))
    return ((shown - low) * (255 / (high - low))).astype(np.uint8)
