"""Names of files that are bytes in another encoding than UTF-8, which Python gives as halves of surrogate pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec


def is_text(path: Path) -> bool:
    """Whether a path is text, as engines and JSON need it."""
    return as_text(str(path)) == str(path)


def as_text(name: str) -> str:
    """The name with what is no text written out, such as ``\\udce9``."""
    return name.encode("utf-8", "backslashreplace").decode()


def encoded(document: Any) -> bytes:
    """A document as JSON in UTF-8, whatever names it holds."""
    try:
        return msgspec.json.encode(document)
    except UnicodeEncodeError:
        return msgspec.json.encode(_written_out(msgspec.to_builtins(document)))


def _written_out(value: Any) -> Any:
    if isinstance(value, str):
        return as_text(value)
    if isinstance(value, dict):
        return {_written_out(name): _written_out(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_written_out(item) for item in value]
    return value
