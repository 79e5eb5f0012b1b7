"""Check the external weight files that an ONNX file names, since engines open them wherever they are."""

from __future__ import annotations

import mmap
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from dyce_runtime.arguments import shown
from dyce_runtime.errors import BundleError

# The key "location" of a string map entry, in the encoding of protocol buffers.
_KEY = re.compile(rb"\x0a\x08location\x12")
_LONGEST = 1 << 16


def check_weights(path: Path, data: Collection[str]) -> None:
    """Raise BundleError if a graph reads weights from a file that the manifest does not list for it.

    Args:
        path: the ONNX file.
        data: names in the bundle of the weight files that the manifest lists for the piece.
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
    """Yield the locations of external weights in a graph."""
    for found in _KEY.finditer(content):
        length, start = _number(content, found.end())
        yield content[start : start + min(length, _LONGEST)].decode("utf-8", "replace")


def _number(content: mmap.mmap, start: int) -> tuple[int, int]:
    """Decode a protocol buffer varint; return its value and the offset after it."""
    value = shift = 0
    for place in range(start, min(start + 10, len(content))):
        value |= (content[place] & 0x7F) << shift
        shift += 7
        if content[place] < 0x80:
            return value, place + 1
    return value, min(start + 10, len(content))
