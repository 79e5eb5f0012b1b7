"""Read untrusted JSON and text files: reading always terminates, and errors are limited to the documented types."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import TypeVar

import msgspec

_Type = TypeVar("_Type")


def read_json(path: Path, type: type[_Type]) -> _Type:
    """Read a JSON document.

    Raises:
        OSError: the file cannot be read, or is a device, a pipe or a socket.
        msgspec.DecodeError: the content is not a document of that type, or is nested too deep.
    """
    check_regular(path)
    return decoded(path.read_bytes(), type)


def decoded(content: bytes, type: type[_Type]) -> _Type:
    """Decode a JSON document. Raises msgspec.DecodeError, and nothing else, if the content is not of that type."""
    try:
        return msgspec.json.decode(content, type=type)
    except RecursionError:
        raise msgspec.DecodeError("lists and objects are nested too deep") from None
    except UnicodeDecodeError as error:
        raise msgspec.DecodeError(f"it is not UTF-8: {error}") from None


def check_regular(path: Path) -> None:
    """Raise OSError if the path is a device, a pipe or a socket, since reading it might never end."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "it is a device, a pipe or a socket; expected a file", str(path))
