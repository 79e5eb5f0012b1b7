"""Map class folders to the classes of a model, by their names or by a list of classes."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from unicodedata import normalize

from dyce_runtime.errors import DataError
from dyce_runtime.inputs.class_lists import read_classes
from dyce_runtime.inputs.class_order import Numbering, numberings

_log = logging.getLogger("dyce_runtime")

_PARTS = {"train", "training", "val", "valid", "validation", "test"}


def class_folders(
    folder: Path, names: Sequence[str], model: Sequence[str] | None, classes: int | None, classes_file: Path | None
) -> tuple[dict[str, int] | None, tuple[Numbering, ...]]:
    """Map class folders to class indices, or find the possible numberings if the mapping is not known.

    Args:
        folder: the folder that contains them, for messages.
        names: names of the class folders.
        model: names of the model's classes in index order; None if they are not known.
        classes: number of classes of the model; None if it is not known.
        classes_file: the user's list of classes; see :func:`dyce_runtime.inputs.class_lists.read_classes`.

    Returns:
        name of the folder to class index and an empty tuple; or None and the possible numberings, the likeliest first.

    Raises:
        DataError: the folders do not match the model's classes, or the file cannot be read.
    """
    if classes_file is not None:
        return _listed(folder, names, classes_file), ()
    # A name that two classes of the model share is ambiguous ("crane" in ImageNet).
    of_model = [normalize("NFC", name) for name in model or ()]
    times = Counter(of_model)
    position = {name: index for index, name in enumerate(of_model) if times[name] == 1}
    unknown = [name for name in names if normalize("NFC", name) not in position]
    if not unknown:
        return {name: position[normalize("NFC", name)] for name in names}, ()
    if len(unknown) < len(names):
        raise DataError(
            f"{folder}: {len(unknown)} of {len(names)} class folders are not the name of one class of the model: "
            f"{_first(unknown)}",
            hint="rename them, or map all with --classes FILE",
        )
    if {name.lower() for name in names} <= _PARTS:
        raise DataError(f"{folder}: found the folders {_first(names)}, expected class folders", hint="name one of them")
    ways = numberings(names, classes)
    if not ways:
        raise DataError(
            f"{folder}: found {len(names)} class folders ({_first(names)}), model has {classes} classes",
            hint="rename the folders to the model's class names, or to class indices, or map them with --classes FILE",
        )
    return None, ways


def in_order(index: Mapping[str, int], classes: int | None = None) -> tuple[str, ...] | None:
    """Return the folders in index order if there is exactly one for every class; None otherwise."""
    if sorted(index.values()) != list(range(classes or len(index))):
        return None
    return tuple(sorted(index, key=index.__getitem__))


def _listed(folder: Path, names: Sequence[str], file: Path) -> dict[str, int]:
    given = read_classes(file, names)
    if unknown := [name for name in names if name not in given]:
        raise DataError(
            f"{folder}: {len(unknown)} class folders are not in {file}: {_first(unknown)}",
            hint="list every folder's name in index order, or as JSON {folder: index}",
        )
    shared = Counter(given[name] for name in names)
    for index in (index for index, times in shared.items() if times > 1):
        same = [name for name in names if given[name] == index]
        _log.warning("%s: %s gives one class, %d, to %d folders: %s", folder, file, index, len(same), _first(same))
    return given


def _first(names: Sequence[str]) -> str:
    """Return the first three names, for a message."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
