"""Bundles on disk: everything that is read back is checked before it is used."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import TypeVar

from dyce_runtime.arguments import shown
from dyce_runtime.bundle.checks import check_manifest
from dyce_runtime.bundle.configuration import FULL, Configuration, Configurations
from dyce_runtime.bundle.documents import read_document, write_document
from dyce_runtime.bundle.manifest import UNCUT, Manifest, Piece
from dyce_runtime.bundle.weights import check_weights
from dyce_runtime.errors import BundleError, ConfigurationError, DestinationError
from dyce_runtime.execution.contracts import PieceSpec
from dyce_runtime.execution.memory import TensorLife, lives
from dyce_runtime.names import is_text
from dyce_runtime.program.operations import Choose

MANIFEST = "manifest.json"
CONFIGURATIONS = "configurations.json"
RECORDS = "calibration/records.npz"
SPLITS = "calibration/splits.npz"
TEST_VECTORS = "testvectors/vectors.npz"
REPORT = "report.html"
ENGINES = "engines"
PRECISIONS = "precisions"

# onnxruntime keeps weights in layouts of its own: pieces of four models took 1.8 to 3.2 times the size of their files.
_MEMORY_PER_BYTE = 2.5
# Characters of a path that a message repeats.
_LONGEST_PATH = 300

# How often a bundle may be replaced while it is being read.
_MOST_REPLACED = 20

_Result = TypeVar("_Result")


class Bundle:
    """An opened bundle: the folder, its manifest and its configurations.

    Attributes:
        path: the folder.
        manifest: what it holds.
        configurations: the named configurations and the front.
        checked: whether its files were compared with their hashes when it was opened.
    """

    def __init__(
        self, path: Path, manifest: Manifest, configurations: Configurations, *, checked: bool = False
    ) -> None:
        self.path, self.checked = path, checked
        self.manifest = manifest
        self.configurations = configurations

    @property
    def fingerprint(self) -> str:
        """The sha256 of the manifest, which lists that of every other file."""
        return sha256_of(self.path / MANIFEST)

    def file(self, name: str) -> Path:
        """The path of a file inside the bundle, by its name in the manifest."""
        return self.path / name

    def size(self, piece: str) -> int:
        """Bytes of a piece's files, which are weights."""
        found = self.manifest.piece(piece)
        return sum(self.file(name).stat().st_size for name in (found.file, *found.data))

    def memory(self, piece: str) -> int:
        """Bytes that a piece takes when it is open, about."""
        return int(_MEMORY_PER_BYTE * self.size(piece))

    def configuration(self, name: str) -> Configuration:
        """A named configuration. Raises ConfigurationError if there is none."""
        return self.configurations.get(name)

    def precision(self, name: str) -> Bundle:
        """The bundle of the same network in another precision. Raises BundleError if there is none."""
        known, document = self.manifest.precisions, f"{PRECISIONS}/{name}/{MANIFEST}"
        if name not in known:
            raise BundleError(
                f"{self.path} has no {name}; it has {', '.join((self.manifest.precision, *known))}",
                hint="`dyce lower` adds precisions to a bundle.",
            )
        found = open_bundle(self.path / PRECISIONS / name, check_hashes=self.checked)
        if self.manifest.files.get(document) != found.fingerprint or found.manifest.precision != name:
            raise BundleError(
                f"{found.path} is not the bundle in {name} that {self.path} names", hint="Export or lower it again."
            )
        return found

    def contents(self) -> list[str]:
        """Names of the files that make the bundle, but its own manifest and configurations."""
        of_others = (f"{PRECISIONS}/{name}/{CONFIGURATIONS}" for name in self.manifest.precisions)
        return sorted([*self.manifest.files, *of_others])

    def piece_specs(self, ids: Sequence[str]) -> list[PieceSpec]:
        """What a target needs to know of the given pieces."""
        pieces = [self.manifest.piece(id) for id in ids]
        specs = self.manifest.specs
        cases = {
            case.piece for op in self.manifest.program if isinstance(op, Choose) for case in op.cases if case.piece
        }
        return [
            PieceSpec(p.id, self.file(p.file), specs(p.reads), specs(p.writes), self._digest(p), p.id in cases)
            for p in pieces
        ]

    def tensor_lives(self, ids: Sequence[str]) -> tuple[TensorLife, ...]:
        """What a target needs to know of the tensors of the given pieces."""
        return lives(self.manifest, [span for span in self.manifest.spans if span.id in ids])

    def runnable(self, *, spans: bool) -> list[Piece]:
        """The pieces that a target has a use for: of the spans only the uncut model if it has none for them."""
        return [piece for piece in self.manifest.pieces if piece.role != "span" or spans or piece.id == UNCUT]

    def _digest(self, piece: Piece) -> str:
        # While a bundle is being written, its files are not listed yet.
        return "-".join(self.manifest.files.get(name, "") for name in (piece.file, *piece.data))


def is_bundle(path: str | os.PathLike[str]) -> bool:
    """Whether this is the folder of a bundle."""
    return (Path(path) / MANIFEST).is_file()


def open_bundle(path: str | os.PathLike[str], *, check_hashes: bool = True) -> Bundle:
    """Open and check a bundle.

    Args:
        path: the folder that an export wrote.
        check_hashes: read every file and compare its sha256; False checks names and the documents only.

    Raises:
        BundleError: not a bundle, a missing or changed file, a newer schema, a path that leaves the folder,
            pieces that do not fit together, or a configuration that does not fit the manifest.
    """
    folder = folder_of(path)

    def read() -> Bundle:
        manifest = read_document(folder / MANIFEST, Manifest)
        configurations = read_document(folder / CONFIGURATIONS, Configurations)
        for name, expected in manifest.files.items():
            _check_file(folder, name, expected if check_hashes else None)
        check_manifest(manifest)
        for piece in manifest.pieces if check_hashes else ():
            check_weights(folder / piece.file, piece.data)
        _check_configurations(folder / CONFIGURATIONS, configurations, manifest)
        return Bundle(folder, manifest, configurations, checked=check_hashes)

    return undisturbed(folder, read)


def undisturbed(folder: Path, action: Callable[[], _Result], undo: Callable[[_Result], object] = id) -> _Result:
    """What an action that reads a bundle returns, from one and the same bundle.

    If another one was put in its place meanwhile, the action is repeated, whether it failed or not.

    Args:
        undo: called with what the action had returned if it is repeated.

    Raises:
        BundleError: the bundle was replaced again and again; or what the action raises.
    """
    for _ in range(_MOST_REPLACED):
        before = _identity(folder)
        try:
            found = action()
        except Exception:  # whatever it is, it may come of reading two bundles
            if _identity(folder) == before:
                raise
            continue
        if _identity(folder) == before:
            return found
        undo(found)
    raise BundleError(f"{folder} is replaced again and again while it is read", hint="Wait until that ends.")


def _identity(folder: Path) -> tuple[int, ...]:
    """Which bundle stands there: a bundle never changes, but for its configurations, it is replaced as a whole."""
    try:
        facts = (folder / MANIFEST).stat()
    except OSError:
        return ()
    return (facts.st_dev, facts.st_ino, facts.st_ctime_ns, facts.st_size)


def folder_of(path: object) -> Path:
    """The folder at a path. Raises BundleError if there is none, whatever else was given."""
    with suppress(TypeError, ValueError, OSError):  # no path, with a NUL in it, or too long for the system
        folder = Path(path)  # type: ignore[arg-type]
        if folder.is_dir():
            if not is_text(folder):  # engines read it by its name
                raise BundleError(
                    f"{folder} is a name in another encoding than UTF-8; expected text", hint="Rename the folder."
                )
            return folder
    named = path if isinstance(path, (str, Path)) and len(str(path)) < _LONGEST_PATH else shown(path)
    found = "is not a folder" if os.path.lexists(named) else "does not exist"
    raise BundleError(f"{named} {found}; expected a bundle, the folder that `dyce-export` writes")


def write_configurations(configurations: Configurations, folder: Path) -> None:
    """Replace the configurations of the bundle in ``folder``. Raises DestinationError if that cannot be written."""
    path = folder / CONFIGURATIONS
    try:
        write_document(configurations, path)
    except OSError as error:
        raise DestinationError(
            f"{path} cannot be written: {error.strerror}", hint="Copy the bundle to a place that can be written."
        ) from error


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    import hashlib

    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def files_of(folder: Path) -> Iterator[str]:
    """Every file of a bundle that the manifest has to list, relative and sorted; the others may change later."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != MANIFEST and not may_change(name):
            yield name


def may_change(name: str) -> bool:
    """Whether a file, by its name in the bundle, is written after an export: there, or in one of its precisions."""
    parts = PurePosixPath(name).parts
    own = parts[2:] if parts[0] == PRECISIONS else parts
    return own in ((CONFIGURATIONS,), (REPORT,))


def _check_file(folder: Path, name: str, expected: str | None) -> None:
    if len(name) > _LONGEST_PATH or not name.isprintable():
        raise BundleError(
            f"the manifest names the file {shown(name)}; expected at most {_LONGEST_PATH} characters of text"
        )
    if name != str(PurePosixPath(name)) or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise BundleError(f"the manifest names {name!r}, which leaves the bundle; expected a path inside {folder}")
    path = folder / name
    try:
        there = path.is_file()
    except OSError:  # a part of the path is too long for the file system
        there = False
    if not there:
        raise BundleError(f"{path} is missing", hint="Copy the whole folder, or export again.")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise BundleError(f"{path} is a link that leaves the bundle; expected a file inside {folder}")
    if expected is not None and (found := sha256_of(path)) != expected:
        raise BundleError(
            f"{path} was changed: its sha256 is {found[:12]}..., the manifest says {expected[:12]}...",
            hint="Copy the bundle again, or export again.",
        )


def _check_configurations(path: Path, configurations: Configurations, manifest: Manifest) -> None:
    if FULL not in configurations.named:
        raise BundleError(f"{path} has no configuration {FULL!r}; every bundle has one")
    unnamed = [entry.configuration(f"number {n} of the front") for n, entry in enumerate(configurations.front)]
    for configuration in [*(configurations.get(name) for name in configurations.named), *unnamed]:
        try:
            configuration.check(manifest)
        except ConfigurationError as error:
            raise BundleError(f"{path} does not fit the manifest: {error}") from error
