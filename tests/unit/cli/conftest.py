from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from dyce_runtime import open_bundle
from dyce_runtime.bundle.documents import write_document
from dyce_runtime.bundle.reader import MANIFEST, RECORDS, files_of, sha256_of
from tests.bundles import HEAD
from tests.unit.promises.test_choose import make_records


@pytest.fixture(autouse=True)
def _own_cache(own_cache: Path) -> None:
    """What one test measures, another does not know."""


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for n in range(3):
        Image.fromarray(generator.integers(0, 256, (9, 9), dtype=np.uint8)).save(folder / f"{n}.png")
    return folder


@pytest.fixture
def searchable(bundle_copy: Path) -> Path:
    """A bundle with records of 400 samples."""
    (bundle_copy / RECORDS).parent.mkdir(exist_ok=True)
    replace(make_records(400), heads=(("3", HEAD), ("7", HEAD))).save(bundle_copy / RECORDS)
    manifest = open_bundle(bundle_copy).manifest
    files = {name: sha256_of(bundle_copy / name) for name in files_of(bundle_copy)}
    write_document(msgspec.structs.replace(manifest, files=files), bundle_copy / MANIFEST)
    return bundle_copy
