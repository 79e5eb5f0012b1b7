"""Open bundles on disk. Everything that is read is checked before it is used."""

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

# Engines keep weights in layouts of their own: in onnxruntime, pieces of four models took 1.8 to 3.2 times the size of
# their files.
_MEMORY_PER_BYTE = 2.5
# The most characters of a path, and of a path that a message repeats.
_LONGEST_PATH = 300

# How often reading is repeated because the bundle was replaced meanwhile.
_MOST_REPLACED = 20

_Result = TypeVar("_Result")


class Bundle:
    """An opened bundle: the folder, its manifest and its configurations.

    Attributes:
        path: the folder.
        manifest: the content of ``manifest.json``.
        configurations: the named configurations and the Pareto front.
        checked: whether the hashes of its files were checked when it was opened.
    """

    def __init__(
        self, path: Path, manifest: Manifest, configurations: Configurations, *, checked: bool = False
    ) -> None:
        self.path, self.checked = path, checked
        self.manifest = manifest
        self.configurations = configurations

    @property
    def fingerprint(self) -> str:
        """The sha256 of the manifest, which contains the hashes of the other files. Read from disk on every access."""
        return sha256_of(self.path / MANIFEST)

    def file(self, name: str) -> Path:
        """Return the path of a file of the bundle, by its name in the manifest."""
        return self.path / name

    def size(self, piece: str) -> int:
        """Return the size of a piece's files in bytes, which is mostly weights."""
        found = self.manifest.piece(piece)
        return sum(self.file(name).stat().st_size for name in (found.file, *found.data))

    def memory(self, piece: str) -> int:
        """Estimate the bytes of memory that an open piece takes."""
        return int(_MEMORY_PER_BYTE * self.size(piece))

    def configuration(self, name: str) -> Configuration:
        """Return a named configuration. Raises ConfigurationError if there is none."""
        return self.configurations.get(name)

    def precision(self, name: str) -> Bundle:
        """Open the bundle of the same network in another precision. Raises BundleError if there is none."""
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
        """Return the names of all files of the bundle except its own manifest, configurations and report, sorted."""
        of_others = (f"{PRECISIONS}/{name}/{CONFIGURATIONS}" for name in self.manifest.precisions)
        return sorted([*self.manifest.files, *of_others])

    def piece_specs(self, ids: Sequence[str]) -> list[PieceSpec]:
        """Return the descriptions of the given pieces for a target."""
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
        """Return all tensors and when they are needed, if the given pieces are open: see ``execution.memory``."""
        return lives(self.manifest, [span for span in self.manifest.spans if span.id in ids])

    def runnable(self, *, spans: bool) -> list[Piece]:
        """Return the pieces that a target can use. Without ``spans``, the uncut model is the only span among them."""
        return [piece for piece in self.manifest.pieces if piece.role != "span" or spans or piece.id == UNCUT]

    def _digest(self, piece: Piece) -> str:
        # While a bundle is being written, its files are not listed yet.
        return "-".join(self.manifest.files.get(name, "") for name in (piece.file, *piece.data))


def is_bundle(path: str | os.PathLike[str]) -> bool:
    """Return whether this is the folder of a bundle."""
    return (Path(path) / MANIFEST).is_file()


def open_bundle(path: str | os.PathLike[str], *, check_hashes: bool = True) -> Bundle:
    """Open and check a bundle.

    Args:
        path: the folder that an export wrote.
        check_hashes: whether to read every file and compare its sha256; False checks file names and the documents only.

    Raises:
        BundleError: the folder is not a bundle, a file is missing or changed, the schema version differs, a path leads
            out of the folder, the pieces do not fit together, or a configuration does not fit the manifest.
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
    """Run an action that reads a bundle, such that everything it reads belongs to the same bundle.

    If another bundle is put in its place meanwhile, the action is repeated, whether it succeeded or failed.

    Args:
        folder: the bundle.
        action: reads the bundle. Its exceptions pass through, unless the bundle was replaced.
        undo: called with the result of a call that is repeated, to release it.

    Returns:
        the result of the action.

    Raises:
        BundleError: the bundle was replaced 20 times in a row.
    """
    for _ in range(_MOST_REPLACED):
        before = _identity(folder)
        try:
            found = action()
        except Exception:  # any error may be caused by reading parts of two bundles
            if _identity(folder) == before:
                raise
            continue
        if _identity(folder) == before:
            return found
        undo(found)
    raise BundleError(f"{folder} is replaced again and again while it is read", hint="Wait until that ends.")


def _identity(folder: Path) -> tuple[int, ...]:
    """Identify the bundle in a folder by the file of its manifest, which never changes: bundles are replaced whole."""
    try:
        facts = (folder / MANIFEST).stat()
    except OSError:
        return ()
    return (facts.st_dev, facts.st_ino, facts.st_ctime_ns, facts.st_size)


def folder_of(path: object) -> Path:
    """Return the folder at a path. Raises BundleError, and nothing else, if there is none."""
    with suppress(TypeError, ValueError, OSError):  # not a path, or with a NUL in it, or too long for the system
        folder = Path(path)  # type: ignore[arg-type]
        if folder.is_dir():
            if not is_text(folder):  # engines take file names as text
                raise BundleError(
                    f"{folder} is a name in another encoding than UTF-8; expected text", hint="Rename the folder."
                )
            return folder
    named = path if isinstance(path, (str, Path)) and len(str(path)) < _LONGEST_PATH else shown(path)
    found = "is not a folder" if os.path.lexists(named) else "does not exist"
    raise BundleError(f"{named} {found}; expected a bundle, the folder that `dyce-export` writes")


def write_configurations(configurations: Configurations, folder: Path) -> None:
    """Replace the configurations of the bundle in ``folder``. Raises DestinationError if they cannot be written."""
    path = folder / CONFIGURATIONS
    try:
        write_document(configurations, path)
    except OSError as error:
        raise DestinationError(
            f"{path} cannot be written: {error.strerror}", hint="Copy the bundle to a place that can be written."
        ) from error


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file in hexadecimal."""
    import hashlib

    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def files_of(folder: Path) -> Iterator[str]:
    """Yield the sorted names of the files that the manifest has to list: all but those that may change later."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != MANIFEST and not may_change(name):
            yield name


def may_change(name: str) -> bool:
    """Return whether a file may be rewritten after an export: configurations and report, of each precision as well."""
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
