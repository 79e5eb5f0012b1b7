"""Read lists of classes from files, which give the class index of every class folder."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from unicodedata import normalize

from dyce_runtime.errors import DataError
from dyce_runtime.json_files import check_regular


def read_classes(file: Path, folders: Iterable[str]) -> dict[str, int]:
    """Read name to class index from a file: one name per line in index order, or JSON ``{name: index}`` (``.json``).

    A byte-order mark, the kind of line ends, spaces around lines, and blank lines at the start and the end are ignored.

    Args:
        file: the list, in UTF-8.
        folders: names of the class folders. A name that equals one of them up to Unicode normalisation (file systems
            differ in how they encode accents) is returned in the spelling of the folder.

    Raises:
        DataError: the file cannot be read or is not such a list.
    """
    try:
        check_regular(file)
        text = file.read_text(encoding="utf-8-sig")
        if file.suffix.lower() == ".json":
            index = json.loads(text, object_pairs_hook=_without_repeats)
        else:
            index = _numbered([line.strip() for line in text.strip().split("\n")])
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: cannot be read as a list of classes ({error})", hint="save it as UTF-8") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: cannot be read as a list of classes ({error})") from error
    if not isinstance(index, dict) or not all(type(value) is int for value in index.values()):
        raise DataError(f"{file}: expected JSON that maps folder names to class indices", hint='as in {"cat": 0}')
    written = {normalize("NFC", folder): folder for folder in folders}
    return {written.get(normalize("NFC", str(name)), str(name)): value for name, value in index.items()}


def _numbered(lines: Sequence[str]) -> dict[str, int]:
    if "" in lines:
        raise ValueError(f"line {lines.index('') + 1} is blank: is a class missing there?")
    _check_repeats(lines)
    return {line: index for index, line in enumerate(lines)}


def _without_repeats(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    _check_repeats([name for name, _ in pairs])
    return dict(pairs)


def _check_repeats(names: Iterable[str]) -> None:
    times = Counter(normalize("NFC", name) for name in names)
    if twice := [name for name, count in times.items() if count > 1]:
        raise ValueError(f"found twice: {', '.join(twice[:3])}")
