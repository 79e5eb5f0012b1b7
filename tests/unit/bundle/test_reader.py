from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from dyce_runtime import Configuration, load, open_bundle
from dyce_runtime.bundle.configuration import Configurations, Entry
from dyce_runtime.bundle.documents import write_document
from dyce_runtime.bundle.reader import (
    CONFIGURATIONS,
    MANIFEST,
    files_of,
    sha256_of,
    write_configurations,
)
from dyce_runtime.errors import BundleError, ConfigurationError, DestinationError
from tests.bundles import NAMED, make_images, on
from tests.unit.bundle.documents import edit, piece

SEGMENT = "segments/segment_01.onnx"


def test_a_bundle_opens_with_everything_it_holds(tiny_bundle: Path):
    bundle = open_bundle(tiny_bundle)
    assert [exit.id for exit in bundle.manifest.exits] == ["3", "7", "final"]
    assert bundle.configuration("fast") == Configuration("fast", NAMED["fast"])
    (spec,) = bundle.piece_specs(["segment_01"])
    assert (spec.id, spec.path) == ("segment_01", tiny_bundle / SEGMENT)
    assert [(tensor.name, tensor.shape) for tensor in spec.inputs] == [("seam_3", ("batch", 4, 4, 4))]


def test_a_bundle_opens_by_its_name_as_text_and_from_a_link(tiny_bundle: Path, tmp_path: Path):
    (tmp_path / "link.dyce").symlink_to(tiny_bundle)
    assert open_bundle(str(tmp_path / "link.dyce")).manifest == open_bundle(tiny_bundle).manifest


def test_a_bundle_may_be_moved(bundle_copy: Path, tmp_path: Path):
    moved = shutil.move(bundle_copy, tmp_path / "moved.dyce")
    with load(moved) as session:
        assert session(make_images(3)).label.shape == (3,)


# --- files -----------------------------------------------------------------------------------------------------------


def test_what_is_no_folder_is_refused(tmp_path: Path):
    (tmp_path / "model.pt").touch()
    for name, found in (("model.pt", "is not a folder"), ("nowhere", "does not exist")):
        with pytest.raises(BundleError, match=f"{tmp_path / name} {found}; expected a bundle"):
            open_bundle(tmp_path / name)


@pytest.mark.parametrize("name", [MANIFEST, CONFIGURATIONS, SEGMENT])
def test_a_missing_file_is_named(bundle_copy: Path, name):
    (bundle_copy / name).unlink()
    with pytest.raises(BundleError, match=f"{bundle_copy / name} is missing"):
        open_bundle(bundle_copy)


def test_a_changed_file_is_found_by_its_hash(bundle_copy: Path):
    file = bundle_copy / SEGMENT
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(BundleError, match=f"{file} was changed: its sha256 is {sha256_of(file)[:12]}"):
        open_bundle(bundle_copy)
    open_bundle(bundle_copy, check_hashes=False)


@pytest.mark.parametrize("name", ["../{outside}", "heads/../../{outside}", "{absolute}", "heads//exit_03_linear.onnx"])
def test_a_path_that_leaves_the_bundle_is_refused(bundle_copy: Path, tmp_path: Path, name):
    outside = tmp_path / "outside.onnx"
    shutil.copy(bundle_copy / SEGMENT, outside)
    name = name.format(outside=outside.name, absolute=outside)
    edit(bundle_copy / MANIFEST, lambda manifest: manifest["files"].update({name: sha256_of(outside)}))
    with pytest.raises(BundleError, match=r"names '.*', which leaves the bundle; expected a path inside"):
        open_bundle(bundle_copy)


@pytest.mark.parametrize("name", ["a/" * 200 + "b", "b" * 280, "a\0b", "segments/a\nb", "\ud800x"], ids=range(5))
def test_a_path_that_no_file_has_is_refused(bundle_copy: Path, name: str):
    edit(bundle_copy / MANIFEST, lambda manifest: manifest["files"].update({name: "0" * 64}))
    with pytest.raises(BundleError, match=r"expected at most 300 characters|is missing|cannot be read"):
        open_bundle(bundle_copy)


@pytest.mark.parametrize("name", [SEGMENT, "segments"])
def test_a_link_that_leaves_the_bundle_is_refused(bundle_copy: Path, tmp_path: Path, name):
    shutil.move(bundle_copy / name, tmp_path / "outside")
    (bundle_copy / name).symlink_to(tmp_path / "outside")
    with pytest.raises(BundleError, match="is a link that leaves the bundle"):
        open_bundle(bundle_copy, check_hashes=False)


def test_a_piece_may_only_name_files_that_the_manifest_lists(bundle_copy: Path):
    edit(bundle_copy / MANIFEST, lambda manifest: manifest["files"].pop(SEGMENT))
    with pytest.raises(BundleError, match=f"piece segment_01 names the file '{SEGMENT}', which the manifest does not"):
        open_bundle(bundle_copy)


def test_external_weights_must_be_listed(bundle_copy: Path):
    edit(bundle_copy / MANIFEST, lambda manifest: piece(manifest, "full").update(data=["spans/full.onnx.data"]))
    with pytest.raises(BundleError, match=r"piece full names the file 'spans/full\.onnx\.data'"):
        open_bundle(bundle_copy)


def test_files_of_lists_all_but_the_two_documents(tiny_bundle: Path):
    files = list(files_of(tiny_bundle))
    assert files == sorted(open_bundle(tiny_bundle).manifest.files)
    assert MANIFEST not in files
    assert CONFIGURATIONS not in files


@pytest.mark.parametrize("document", [MANIFEST, CONFIGURATIONS])
def test_a_bit_that_flips_is_found_or_says_the_same(bundle_copy: Path, document: str):
    """A space, or a letter of the word "digest", may become another one: then nothing else has changed."""
    file, before = bundle_copy / document, open_bundle(bundle_copy)
    content = file.read_bytes()
    random, opened = np.random.default_rng(3), 0
    for bit in random.integers(0, 8 * len(content), 300).tolist():
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        file.write_bytes(changed)
        try:
            found = open_bundle(bundle_copy)
        except BundleError:
            continue
        opened += 1
        assert (found.manifest, found.configurations) == (before.manifest, before.configurations)
    assert opened < 6


def test_a_document_that_was_edited_needs_its_digest_emptied(bundle_copy: Path):
    file = bundle_copy / CONFIGURATIONS
    text = file.read_text()
    file.write_text(text.replace("0.95", "0.75"))
    with pytest.raises(BundleError, match=r"configurations\.json was changed: its digest") as caught:
        open_bundle(bundle_copy)
    assert "set its digest to an empty string" in caught.value.hint
    edit(file, lambda document: None)
    assert open_bundle(bundle_copy).configuration("accurate").exits["7"].threshold == 0.75


# --- documents -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("document", [MANIFEST, CONFIGURATIONS])
@pytest.mark.parametrize("content", [b"", b"{", b'{"schema_version": "1.0"', b'"\xff"', b"\x80\x81"])
def test_broken_json_is_refused(bundle_copy: Path, document, content):
    (bundle_copy / document).write_bytes(content)
    with pytest.raises(BundleError, match=f"{bundle_copy / document} cannot be read"):
        open_bundle(bundle_copy)


@pytest.mark.parametrize("document", [MANIFEST, CONFIGURATIONS])
def test_a_newer_schema_is_refused_with_both_numbers(bundle_copy: Path, document):
    edit(bundle_copy / document, lambda content: content.update(schema_version="3.1", news=True))
    with pytest.raises(BundleError, match=r"has schema_version '3\.1'; this runtime reads 2\.0") as caught:
        open_bundle(bundle_copy)
    assert "Upgrade dyce-export" in caught.value.hint


def test_a_bundle_of_an_earlier_version_is_refused_in_one_sentence(bundle_copy: Path):
    edit(bundle_copy / MANIFEST, lambda content: content.update(schema_version="1.0"))
    with pytest.raises(BundleError, match=r"'1\.0': it was made by an earlier version; this runtime reads") as caught:
        open_bundle(bundle_copy)
    assert caught.value.hint == "Export again."


def test_a_bundle_that_requires_something_unknown_is_refused_by_name(bundle_copy: Path):
    def require(content: Any) -> None:
        content.update(requires=["savers", "telepathy"], program=[{"op": "foresee"}])

    edit(bundle_copy / MANIFEST, require)
    with pytest.raises(BundleError, match="requires 'telepathy', which this runtime does not know") as caught:
        open_bundle(bundle_copy)
    assert "Upgrade dyce-export" in caught.value.hint


@pytest.mark.parametrize("version", [None, "", "one", 2.0, "²", "-1.0", [1]])
def test_a_schema_that_is_no_version_is_refused(bundle_copy: Path, version):
    edit(bundle_copy / MANIFEST, lambda manifest: manifest.update(schema_version=version))
    with pytest.raises(BundleError, match=r"expected .*2\.0|schema_version|Expected `str`"):
        open_bundle(bundle_copy)


@pytest.mark.parametrize("version", ["2.0", "2.7"])
def test_another_minor_schema_opens(bundle_copy: Path, version):
    for document in (MANIFEST, CONFIGURATIONS):
        edit(bundle_copy / document, lambda content: content.update(schema_version=version))
    assert open_bundle(bundle_copy).manifest.schema_version == version


def test_a_field_of_the_wrong_type_is_named(bundle_copy: Path):
    edit(bundle_copy / MANIFEST, lambda manifest: piece(manifest, "segment_01").update(macs="one"))
    with pytest.raises(BundleError, match=r"manifest\.json cannot be read: Expected `int`.*pieces\[\.*1?.*macs"):
        open_bundle(bundle_copy)


# --- configurations --------------------------------------------------------------------------------------------------


def test_configurations_may_be_rewritten(bundle_copy: Path):
    mine = Configurations(named={"full": Entry(exits={}), "mine": Entry(exits=on(exit3=0.25))})
    write_document(mine, bundle_copy / CONFIGURATIONS)
    with load(bundle_copy) as session:
        session.use("mine")
        assert session.configuration.exits["3"].threshold == 0.25


def test_a_document_without_optional_fields_opens(bundle_copy: Path):
    def forget(document: Any) -> None:
        for entry in (*document["named"].values(), *document["front"]):
            del entry["gates"]

    edit(bundle_copy / CONFIGURATIONS, forget)
    configurations = open_bundle(bundle_copy).configurations
    assert list(configurations.named) == list(NAMED)
    assert {str(entry.gates) for entry in configurations.named.values()} == {"{}"}


@pytest.mark.parametrize("exits", [on(exit12=0.5), on(final=0.5), on(exit3=1.5)])
def test_configurations_that_do_not_fit_the_manifest_are_refused(bundle_copy: Path, exits):
    wrong = Configurations(named={"full": Entry(exits={}), "mine": Entry(exits=exits)})
    write_document(wrong, bundle_copy / CONFIGURATIONS)
    with pytest.raises(BundleError, match=r"configurations\.json does not fit the manifest: configuration 'mine'"):
        open_bundle(bundle_copy)


def test_a_bundle_without_full_is_refused(bundle_copy: Path):
    write_document(Configurations(named={"fast": Entry(exits=NAMED["fast"])}), bundle_copy / CONFIGURATIONS)
    with pytest.raises(BundleError, match="no configuration 'full'"):
        open_bundle(bundle_copy)


def test_an_unknown_name_lists_the_known_ones(tiny_bundle: Path):
    with pytest.raises(ConfigurationError, match="it has: full, accurate, balanced, fast"):
        open_bundle(tiny_bundle).configuration("medium")


def test_thresholds_come_back_to_the_last_bit(tmp_path: Path):
    thresholds = np.random.default_rng(0).random(50, np.float32)
    named = {str(number): Entry(exits=on(exit3=float(threshold))) for number, threshold in enumerate(thresholds)}
    write_document(Configurations(named=named), tmp_path / "c.json")
    back = msgspec.json.decode((tmp_path / "c.json").read_bytes(), type=Configurations)
    assert [np.float32(entry.exits["3"].threshold) for entry in back.named.values()] == thresholds.tolist()


def test_a_write_that_fails_leaves_the_old_document_and_no_rest(bundle_copy: Path, monkeypatch: pytest.MonkeyPatch):
    before = (bundle_copy / CONFIGURATIONS).read_bytes()
    files = sorted(bundle_copy.iterdir())

    def full_disk(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_document(Configurations(), bundle_copy / CONFIGURATIONS)
    assert (bundle_copy / CONFIGURATIONS).read_bytes() == before
    assert sorted(bundle_copy.iterdir()) == files


def test_a_bundle_that_cannot_be_written_says_so(bundle_copy: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(DestinationError, match=r"configurations\.json cannot be written: Read-only") as caught:
        write_configurations(Configurations(), bundle_copy)
    assert "Copy the bundle" in caught.value.hint
