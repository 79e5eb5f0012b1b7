"""Where a graph keeps its weights: an ONNX file may name others, and engines open these wherever they are."""

from __future__ import annotations

import mmap
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from dyce_runtime.arguments import shown
from dyce_runtime.errors import BundleError

# In the encoding of protocol buffers: the entry of a string map whose key is "location".
_KEY = re.compile(rb"\x0a\x08location\x12")
_LONGEST = 1 << 16


def check_weights(path: Path, data: Collection[str]) -> None:
    """Raise BundleError if a graph names another file for its weights than those that the manifest lists for it.

    Args:
        data: the files of its piece, by their names in the bundle.
    """
    allowed = {name.rpartition("/")[2] for name in data}
    if path.stat().st_size == 0:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for location in _locations(content):
            if location not in allowed:
                raise BundleError(
                    f"{path} reads weights from {shown(location)}; expected a file that the manifest lists for it",
                    hint="Export the bundle again.",
                )


def _locations(content: mmap.mmap) -> Iterator[str]:
    """What a graph says of where its weights are."""
    for found in _KEY.finditer(content):
        length, start = _number(content, found.end())
        yield content[start : start + min(length, _LONGEST)].decode("utf-8", "replace")


def _number(content: mmap.mmap, start: int) -> tuple[int, int]:
    """A number of variable length, and where what follows it starts."""
    value = shift = 0
    for place in range(start, min(start + 10, len(content))):
        value |= (content[place] & 0x7F) << shift
        shift += 7
        if content[place] < 0x80:
            return value, place + 1
    return value, min(start + 10, len(content))
