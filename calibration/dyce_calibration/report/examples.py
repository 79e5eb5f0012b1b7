"""Example pictures: which samples of the test split leave first, and which go to the end."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dyce_calibration.records import Records
from dyce_runtime.configuration import Configuration
from dyce_runtime.errors import DataError
from dyce_runtime.manifest import FINAL

if TYPE_CHECKING:
    from PIL import Image

    from dyce_runtime.preprocessing import Picture

EACH = 6
LONGEST_EDGE = 96


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
        picture: gives the picture of a row of ``records``: a path, a PIL image or a uint8 array (H, W), (H, W, 1) or
            (H, W, 3). None if there are no pictures; the result is then empty.

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
    by_confidence = test[np.argsort(-records.confidences[test, first], kind="stable")]
    early = by_confidence[left[by_confidence] == first][:EACH]
    late = by_confidence[left[by_confidence] == len(records.heads)][::-1][:EACH]
    exits = (*(exit for exit, _ in records.heads), FINAL)
    return tuple(
        Example(
            png=_to_png(picture(row), row),
            label=int(records.labels[row]),
            exit=exits[left[row]],
            confidence=float(records.confidences[row, left[row]]),
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
        leave = records.confidences[:, column] > np.float32(on.threshold)
        left[leave] = np.minimum(left[leave], column)
    return left


def _to_png(picture: Picture, row: int) -> bytes:
    try:
        image = _open(picture)
        image.thumbnail((LONGEST_EDGE, LONGEST_EDGE))
        file = io.BytesIO()
        image.save(file, "png", optimize=True)
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more
        raise DataError(f"the picture of sample {row} of the records cannot be read: {error}") from error
    return file.getvalue()


def _open(picture: Picture) -> Image.Image:
    from PIL import Image

    if isinstance(picture, (str, Path)):
        with Image.open(picture) as file:
            return file.convert("RGB")
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture[:, :, 0] if picture.shape[2:] == (1,) else picture)
    return picture.convert("RGB")
