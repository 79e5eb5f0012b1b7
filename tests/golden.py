"""Bundles of every schema version, committed in ``tests/data/bundles``: later versions open them and answer alike.

``python -m tests.golden`` writes those of the present schema; it refuses to touch those that are there.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from dyce_runtime.bundle.manifest import SCHEMA_VERSION

FOLDER = Path(__file__).parent / "data" / "bundles"
NAMES = ("exits", "savers", "sequence", "choices")


def bundle(name: str, version: str = SCHEMA_VERSION) -> Path:
    """One of them."""
    return FOLDER / version / f"{name}.dyce"


def write() -> None:
    """Write those of the present schema."""
    from tests import bundles, cascades, choices, sequences

    if (FOLDER / SCHEMA_VERSION).exists():
        sys.exit(f"{FOLDER / SCHEMA_VERSION} is there: bundles of a version never change")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        bundles.with_vectors(bundles.make_bundle(path / "exits.dyce"))
        for name, make in (("savers", cascades.make_cascade), ("sequence", sequences.make_sequence)):
            (path / name).mkdir()
            shutil.move(make(path / name), path / f"{name}.dyce")
        choices.make_choices(path / "choices.dyce")
        for name in NAMES:
            shutil.copytree(path / f"{name}.dyce", bundle(name))


if __name__ == "__main__":
    write()
