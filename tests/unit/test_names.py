"""Names in another encoding than UTF-8: written out in documents and reports, refused where an engine reads by them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dyce_runtime import open_bundle
from dyce_runtime.bundle.documents import write_document
from dyce_runtime.bundle.reader import MANIFEST
from dyce_runtime.errors import BundleError
from dyce_runtime.names import as_text, encoded, is_text

LATIN = os.fsdecode("café".encode("latin-1"))


@given(st.dictionaries(st.text(st.characters(exclude_categories=())), st.text(st.characters(exclude_categories=()))))
def test_any_document_becomes_json(document: dict[str, str]) -> None:
    read = msgspec.json.decode(encoded(document))
    assert read == {as_text(name): as_text(value) for name, value in document.items()}


def test_text_stays_as_it_is() -> None:
    assert as_text("Käfer 猫") == "Käfer 猫"
    assert is_text(Path("Käfer 猫"))
    assert (as_text(LATIN), is_text(Path(LATIN))) == ("caf\\udce9", False)


def test_a_manifest_takes_the_names_of_classes_in_any_encoding(bundle_copy: Path) -> None:
    manifest = open_bundle(bundle_copy).manifest
    names = tuple(f"{LATIN}{k}" for k in range(manifest.model.num_classes))
    base = msgspec.structs.replace(manifest.base, model=msgspec.structs.replace(manifest.model, class_names=names))
    write_document(msgspec.structs.replace(manifest, networks=(base,)), bundle_copy / MANIFEST)
    found = open_bundle(bundle_copy).manifest.model.class_names
    assert found is not None
    assert found[0] == "caf\\udce90"


def test_a_folder_that_engines_cannot_name_is_refused(bundle_copy: Path) -> None:
    odd = bundle_copy.with_name(f"{LATIN}.dyce")
    shutil.move(bundle_copy, odd)
    with pytest.raises(BundleError, match="another encoding than UTF-8"):
        open_bundle(odd)


def test_models_and_destinations_are_refused_before_anything_is_done(tmp_path: Path) -> None:
    staging = pytest.importorskip("dyce_export.writing.staging")
    formats = pytest.importorskip("dyce_export.sources.model_formats")
    with pytest.raises(staging.DestinationError, match="another encoding than UTF-8"):
        staging.check_destination(tmp_path / f"{LATIN}.dyce", force=False)
    (tmp_path / f"{LATIN}.pt").touch()
    with pytest.raises(formats.ModelError, match="another encoding than UTF-8"):
        formats.kind_of(tmp_path / f"{LATIN}.pt")
