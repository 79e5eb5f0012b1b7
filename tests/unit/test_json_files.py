"""JSON from anywhere: whatever a file holds, and whatever stands in its place, reading it ends in words."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dyce_calibration.search.costs import read_costs
from dyce_calibration.search.released import read_released_costs
from dyce_runtime import open_bundle
from dyce_runtime.errors import DyceError
from dyce_runtime.inputs.class_lists import read_classes
from dyce_runtime.targets import fastest
from dyce_targets.nvidia import engines

CONTENTS = {
    "deep lists": b"[" * 200_000,
    "deep objects": b'{"a":' * 200_000,
    "deep and closed": b"[" * 200_000 + b"]" * 200_000,
    "deep in a field": b'{"schema_version": "1.0", "x": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "digits": b'{"schema_version": ' + b"1" * 5000 + b"}",
    "beyond floats": b'{"unit": "ms", "backbone": {"final": 1e999}}',
    "Latin-1": b'{"\xe9": 1}',
    "half a pair": b'{"\\ud800": 1}',
    "NaN": b'{"a": NaN}',
    "another type": b'"text"',
    "cut": b'{"schema_vers',
    "nothing": b"",
}
READERS: dict[str, Callable[[Path], object]] = {
    "costs": read_costs,
    "costs of the release": read_released_costs,
    "classes": lambda path: read_classes(path, []),
    "manifest": lambda path: as_document(path, "manifest.json"),
    "configurations": lambda path: as_document(path, "configurations.json"),
}


def as_document(path: Path, name: str) -> object:
    path.rename(path.parent / "copy.dyce" / name)
    return open_bundle(path.parent / "copy.dyce", check_hashes=False)


@pytest.fixture
def path(bundle_copy: Path) -> Path:
    return bundle_copy.with_name("odd.json")


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("content", CONTENTS)
def test_odd_content_is_refused(reader: str, content: str, path: Path) -> None:
    path.write_bytes(CONTENTS[content])
    if (content, reader) == ("half a pair", "classes"):
        pytest.skip("this is a name, although no folder can have it")
    with pytest.raises(DyceError) as caught:
        READERS[reader](path)
    assert len(caught.value.message) < 500


@pytest.mark.parametrize("reader", [name for name in READERS if name not in ("manifest", "configurations")])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_what_is_no_file_is_refused(reader: str, make: Callable[[Path], None], path: Path) -> None:
    make(path)
    with pytest.raises(DyceError, match=r"odd\.json"):
        READERS[reader](path)


def test_a_mapping_of_classes_is_read_alike(path: Path) -> None:
    agreement = pytest.importorskip(
        "dyce_export.savers.joint_verification", reason="savers need torch", exc_type=ImportError
    )
    for content in CONTENTS.values():
        path.write_bytes(content)
        if content != CONTENTS["half a pair"]:
            with pytest.raises(DyceError, match="cannot be read"):
                agreement.read_mapping(str(path))


@pytest.mark.parametrize("content", CONTENTS)
def test_what_a_cache_holds_does_not_matter(
    content: str, bundle_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bundle = open_bundle(bundle_copy)
    file = fastest.cache_of(bundle) / fastest.FILE
    file.parent.mkdir(parents=True)
    file.write_bytes(CONTENTS[content])
    assert isinstance(fastest._read(bundle), dict)
    (tmp_path / "piece.json").write_bytes(CONTENTS[content])
    assert engines.notes(tmp_path) == {}


def test_a_pipe_in_the_cache_is_not_waited_for(
    bundle_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bundle = open_bundle(bundle_copy)
    file = fastest.cache_of(bundle) / fastest.FILE
    file.parent.mkdir(parents=True)
    os.mkfifo(file)
    assert fastest._read(bundle) == {}
