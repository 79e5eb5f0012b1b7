"""Store engines on disk, each with a note that says what it was built from and with."""

from __future__ import annotations

from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import msgspec

from dyce_runtime.atomic_write import write_atomically
from dyce_runtime.errors import DestinationError
from dyce_runtime.execution.contracts import DEFAULT_MAX_BATCH, PieceSpec, TargetSpec
from dyce_runtime.json_files import check_regular, read_json


class Fingerprint(msgspec.Struct, frozen=True):
    """Everything that an engine depends on: if anything differs, it is built again.

    Attributes:
        product, version: the product that built it, and its version.
        devices: the compute capabilities that it was built for; empty if the product chose.
        precision, max_batch: as in ``TargetSpec``.
        onnx: hash of the files that it was built from.
    """

    product: str
    version: str
    devices: tuple[str, ...]
    precision: str
    max_batch: int
    onnx: str


class Note(msgspec.Struct, frozen=True):
    """The content of the file next to an engine. ``sha256`` is the hash of the engine."""

    fingerprint: Fingerprint
    sha256: str


def fingerprint(product: str, version: str, piece: PieceSpec, spec: TargetSpec) -> Fingerprint:
    """Return the fingerprint of the engine that would be built with these arguments."""
    most = spec.max_batch or DEFAULT_MAX_BATCH
    return Fingerprint(product, version, spec.devices, spec.precision, most, piece.digest)


def notes(folder: Path) -> dict[str, Note]:
    """Return id of the piece to note, for all engines in a folder. Notes that cannot be read are left out."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        with suppress(OSError, msgspec.DecodeError):
            found[path.stem] = read_json(path, Note)
    return found


def find(folder: Path, piece: str, wanted: Fingerprint) -> Path | None:
    """Return the engine of a piece; None if there is none, its fingerprint differs, or it is damaged."""
    engine, note = _paths(folder, piece)
    try:
        known = read_json(note, Note)
        check_regular(engine)
        content = engine.read_bytes()
    except (OSError, msgspec.DecodeError):
        return None
    return engine if known == Note(wanted, sha256(content).hexdigest()) else None


def find_for(folder: Path, piece: str, wanted: Fingerprint, device: str) -> Path | None:
    """Return the engine of a piece for a GPU, which may have been built for more GPUs or for larger batches; or None.

    Args:
        folder: the folder of the engines.
        piece: id of the piece.
        wanted: the fingerprint, whose ``devices`` are ignored and whose ``max_batch`` is the least.
        device: compute capability of the GPU.
    """
    made = made_for(folder, piece, wanted, device)
    return None if made is None else find(folder, piece, made)


def made_for(folder: Path, piece: str, wanted: Fingerprint, device: str) -> Fingerprint | None:
    """Return the fingerprint of an engine that :func:`find_for` accepts, without checking whether it is damaged."""
    note = notes(folder).get(piece)
    if note is None or (note.fingerprint.devices and device not in note.fingerprint.devices):
        return None
    made = note.fingerprint
    same = msgspec.structs.replace(wanted, devices=made.devices, max_batch=made.max_batch) == made
    return made if same and made.max_batch >= wanted.max_batch else None


def write(folder: Path, piece: str, made: Fingerprint, content: bytes) -> Path:
    """Store an engine and its note, and return the path of the engine. Concurrent readers find either engine, or none.

    Raises:
        DestinationError: the folder cannot be written, or the disk is full.
    """
    engine, note = _paths(folder, piece)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        note.unlink(missing_ok=True)
        write_atomically(engine, content)
        write_atomically(note, msgspec.json.format(msgspec.json.encode(Note(made, sha256(content).hexdigest()))))
    except OSError as error:
        raise DestinationError(f"{engine} cannot be written: {error.strerror}") from error
    return engine


def _paths(folder: Path, piece: str) -> tuple[Path, Path]:
    return folder / f"{piece}.engine", folder / f"{piece}.json"
