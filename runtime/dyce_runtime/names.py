"""Handle file names that are not valid UTF-8, which Python represents with lone surrogates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec


def is_text(path: Path) -> bool:
    """Return whether a path is valid Unicode text, which engines and JSON require."""
    return as_text(str(path)) == str(path)


def as_text(name: str) -> str:
    """Return the name with every undecodable byte escaped, for example as ``\\udce9``."""
    return name.encode("utf-8", "backslashreplace").decode()


def encoded(document: Any) -> bytes:
    """Encode a document as JSON in UTF-8, with undecodable file names escaped as in :func:`as_text`."""
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
