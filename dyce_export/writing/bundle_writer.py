"""The last step of writing any bundle: hash every file, then write both documents.

This module needs neither torch nor ONNX, so that a device can write bundles too.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from dyce_export.writing.staging import staged
from dyce_runtime.bundle.configuration import Configurations
from dyce_runtime.bundle.documents import write_document
from dyce_runtime.bundle.manifest import UNCUT, Manifest
from dyce_runtime.bundle.reader import (
    CONFIGURATIONS,
    ENGINES,
    MANIFEST,
    PRECISIONS,
    RECORDS,
    SPLITS,
    Bundle,
    files_of,
    open_bundle,
    sha256_of,
)
from dyce_runtime.execution.plan import make_plan, pieces_of

# Files that are needed only to choose configurations again, or that were built for another device.
_NOT_FOR_A_DEVICE = (RECORDS, SPLITS, f"{PRECISIONS}/", f"{ENGINES}/")


def seal(folder: Path, manifest: Manifest, configurations: Configurations) -> Manifest:
    """Hash all files in a folder and write the manifest and the configurations; return the manifest as written."""
    files = {name: sha256_of(folder / name) for name in files_of(folder)}
    sealed = msgspec.structs.replace(manifest, files=files)
    write_document(configurations, folder / CONFIGURATIONS)
    write_document(sealed, folder / MANIFEST)
    return sealed


def copy_files(bundle: Bundle, names: Iterable[str], folder: Path) -> None:
    """Copy files of a bundle, given by their names inside it, into the folder of another bundle."""
    for name in sorted(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.file(name), folder / name)


def write_for_device(
    bundle: Bundle, output: Path, build: Callable[[Bundle], object], *, stripped: bool, force: bool
) -> Bundle:
    """Write a copy of a bundle together with files built for a device, which the manifest of the copy lists.

    Args:
        build: is called with the copy before the documents are written; writes into its folder.
        stripped: omit records, other precisions, the report, and spans that no named configuration runs.

    Raises:
        DestinationError: see :func:`dyce_export.writing.staging.staged`. Errors of ``build`` are passed on.
    """
    with staged(output, force=force) as folder:
        manifest = _stripped(bundle) if stripped else bundle.manifest
        gone = {name for piece in bundle.manifest.pieces for name in (piece.file, *piece.data)}
        gone -= {name for piece in manifest.pieces for name in (piece.file, *piece.data)}
        kept = [name for name in bundle.contents() if name not in gone]
        if stripped:
            kept = [name for name in kept if not name.startswith(_NOT_FOR_A_DEVICE)]
        copy_files(bundle, kept, folder)
        build(Bundle(folder, manifest, bundle.configurations))
        seal(folder, manifest, bundle.configurations)
    return open_bundle(output)


def _stripped(bundle: Bundle) -> Manifest:
    """Return the manifest without the spans that no named configuration runs, and without other precisions."""
    manifest = bundle.manifest
    named = (bundle.configuration(name) for name in bundle.configurations.named)
    used = {UNCUT, *pieces_of(make_plan(manifest, configuration) for configuration in named)}
    pieces = tuple(piece for piece in manifest.pieces if piece.role != "span" or piece.id in used)
    return msgspec.structs.replace(manifest, pieces=pieces, precisions=())
