"""Read and write the two JSON documents of a bundle atomically, with a digest that detects corruption."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TypeVar

import msgspec

from dyce_runtime.arguments import shown
from dyce_runtime.atomic_write import write_atomically
from dyce_runtime.bundle.checks import check_features
from dyce_runtime.bundle.configuration import Configurations
from dyce_runtime.bundle.manifest import SCHEMA_VERSION, Manifest
from dyce_runtime.errors import BundleError
from dyce_runtime.json_files import check_regular, decoded
from dyce_runtime.names import encoded

_Document = TypeVar("_Document", Manifest, Configurations)
# The digest in the text of a document.
_DIGEST = re.compile(rb'("digest":\s*")([0-9a-f]{64})(")')
_EMPTY = b"0" * 64
# The most bytes of a document, which is read into memory. A model with a hundred exits has documents of a megabyte.
_LARGEST = 64 << 20


def write_document(document: Manifest | Configurations, path: Path) -> None:
    """Write a JSON document with its digest, atomically. Raises OSError if it cannot be written."""
    blank = msgspec.structs.replace(document, digest=_EMPTY.decode())
    text = msgspec.json.format(encoded(blank), indent=2) + b"\n"
    write_atomically(path, _with_digest(text, _digest(text)))


def read_document(path: Path, type: type[_Document]) -> _Document:
    """Read a JSON document and check its digest, which is left empty in the result.

    Raises:
        BundleError: the file is missing, damaged, of another schema version, or requires an unknown feature.
    """
    if not path.is_file():
        raise BundleError(f"{path} is missing; expected a bundle, the folder that `dyce-export` writes")
    try:
        check_regular(path)
        if (size := path.stat().st_size) > _LARGEST:
            raise BundleError(f"{path} has {size} bytes; expected at most {_LARGEST}", hint="Export the bundle again.")
        content = path.read_bytes()
        head = decoded(content, object)
        known = head if isinstance(head, dict) else {}
        _check_schema(path, known.get("schema_version"))
        # Checked before the rest is decoded: the format of a document with unknown features is unknown.
        if isinstance(required := known.get("requires"), list):
            check_features(map(str, required))
        _check_digest(path, content, known.get("digest"))
        return msgspec.structs.replace(decoded(content, type), digest="")
    except (OSError, msgspec.DecodeError) as error:
        raise BundleError(f"{path} cannot be read: {error}", hint="Export the bundle again.") from error


def _with_digest(text: bytes, digest: bytes) -> bytes:
    return _DIGEST.sub(rb"\g<1>" + digest + rb"\g<3>", text, count=1)


def _digest(text: bytes) -> bytes:
    """Return the digest of a document: the sha256 of its text with zeros in place of the digest, in hexadecimal."""
    import hashlib  # imported late: hashlib and tempfile are a sixth of this package's import time

    return hashlib.sha256(_with_digest(text, _EMPTY)).hexdigest().encode()


def _check_digest(path: Path, content: bytes, found: object) -> None:
    """Raise BundleError if the digest is wrong. A document without one, edited by hand, is accepted."""
    if found in (None, ""):
        return
    if not isinstance(found, str) or _digest(content).decode() != found:
        raise BundleError(
            f"{path} was changed: its digest is not that of its content",
            hint="Copy the bundle again, or export again. To edit it by hand, set its digest to an empty string.",
        )


def _check_schema(path: Path, found: object) -> None:
    major = str(found).split(".", 1)[0]
    ours = int(SCHEMA_VERSION.split(".", 1)[0])
    if not major.isdecimal():
        raise BundleError(f"{path} has schema_version {shown(found)}; expected {SCHEMA_VERSION}")
    if int(major) > ours:
        raise BundleError(
            f"{path} has schema_version {shown(found)}; this runtime reads {SCHEMA_VERSION}",
            hint="Upgrade dyce-export on this machine, or export again with the version installed here.",
        )
    if int(major) < ours:
        raise BundleError(
            f"{path} has schema_version {shown(found)}: it was made by an earlier version; this runtime reads "
            f"{SCHEMA_VERSION}",
            hint="Export again.",
        )
