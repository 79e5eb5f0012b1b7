"""Files that hold JSON, or lines, from anywhere: reading one ends, and fails in one way."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import TypeVar

import msgspec

_Type = TypeVar("_Type")


def read_json(path: Path, type: type[_Type]) -> _Type:
    """Read a JSON document.

    Raises:
        OSError: the file cannot be read, or is no regular file.
        msgspec.DecodeError: it holds something else, or lists and objects nested too deep.
    """
    check_regular(path)
    return decoded(path.read_bytes(), type)


def decoded(content: bytes, type: type[_Type]) -> _Type:
    """Decode a JSON document. Raises msgspec.DecodeError if that is not possible, whatever the content is."""
    try:
        return msgspec.json.decode(content, type=type)
    except RecursionError:
        raise msgspec.DecodeError("lists and objects are nested too deep") from None
    except UnicodeDecodeError as error:
        raise msgspec.DecodeError(f"it is not UTF-8: {error}") from None


def check_regular(path: Path) -> None:
    """Raise OSError if this is a device, a pipe or a socket: reading it might never end."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "it is a device, a pipe or a socket; expected a file", str(path))
