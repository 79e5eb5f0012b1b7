"""Mutated bundles, whose hashes fit: they are refused by an error of ours, or compute what the bundle computed before.

What a stranger may do who can rewrite hashes is in SECURITY.md; this is what he may not.
"""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dyce_runtime import Configuration, DyceError, load
from dyce_runtime.bundle.reader import CONFIGURATIONS, MANIFEST, RECORDS, sha256_of
from dyce_runtime.monitoring.observation import Observation
from tests.bundles import make_bundle, make_images, on, with_vectors

# Values that no field expects, and those that some do.
STRANGE: tuple[Any, ...] = (
    None, True, 0, -1, 1, 2, 10**9, 10**30, 1e308, float("nan"), "", "..", "../x", "/etc/passwd", "segment_00", "final",
    "x" * 300, "[red]", "\udcff", [], {}, [[]], [0], ["batch"], {"a": 1},
)  # fmt: skip
CONFIGURED = (Configuration("full"), Configuration("mine", on(exit3=0.6, exit7=0.7)))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of everything in a JSON document."""
    if path:
        yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inside:
        yield from places(one, (*path, key))


def write(path: Path, document: dict[str, Any]) -> None:
    """Write a document whose digest nobody can check: a stranger may do so."""
    path.write_text(json.dumps({**document, "digest": ""}))


def mutate_document(folder: Path, draw: random.Random) -> None:
    """Change something in one of the two documents: replace, remove, repeat, exchange or copy from another place."""
    path = folder / draw.choice([MANIFEST, MANIFEST, CONFIGURATIONS])
    document = json.loads(path.read_text())
    for _ in range(draw.choice([1, 1, 2, 3])):
        known = [place for place in places(document) if place[0] != "digest"]
        *way, key = draw.choice(known)
        parent = document
        for step in way:
            parent = parent[step]
        how = draw.choice(["replace", "remove", "repeat", "exchange", "copy"])
        if how == "replace":
            parent[key] = draw.choice(STRANGE)
        elif how == "remove":
            del parent[key]
        elif how == "repeat" and isinstance(parent, list):
            parent.append(parent[key])
        elif how == "exchange" and isinstance(parent, list):
            other = draw.randrange(len(parent))
            parent[key], parent[other] = parent[other], parent[key]
        else:
            source = document
            for step in draw.choice(known):
                source = source[step]
            parent[key] = copy.deepcopy(source)
    write(path, document)


def exchange_files(folder: Path, draw: random.Random) -> None:
    """Exchange the contents of two pieces."""
    one, other = draw.sample(sorted(folder.rglob("*.onnx")), 2)
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def mutate_file(folder: Path, draw: random.Random) -> None:
    """Flip bits of a file, cut it off, or put another one in its place."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix in (".onnx", ".npz")]
    path = draw.choice(sorted(files))
    content = bytearray(path.read_bytes())
    how = draw.choice(["flip", "flip", "cut", "empty", "other", "repack"])
    if how == "flip":
        for _ in range(draw.choice([1, 1, 8])):
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    elif how == "cut":
        del content[draw.randrange(len(content)) :]
    elif how == "other":
        content = bytearray(draw.choice(sorted(files)).read_bytes())
    elif how == "repack" and path.suffix == ".npz":
        with np.load(path) as file:
            arrays = dict(file)
        name = draw.choice(sorted(arrays))
        arrays[name] = draw.choice([np.zeros(0), np.full(3, np.nan), arrays[name][..., :1], arrays[name].astype(str)])
        np.savez(path, **arrays)
        return
    path.write_bytes(bytes(content) if how != "empty" else b"")


def rehash(folder: Path) -> None:
    """Make hashes and digests fit again, as a stranger would."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        manifest["files"] = {name: sha256_of(folder / name) for name in manifest["files"] if (folder / name).is_file()}
        write(folder / MANIFEST, manifest)
    except (ValueError, TypeError, KeyError, AttributeError, OSError):
        pass  # what was done to the manifest does not allow it


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with records and test vectors, so that there is one of every kind of file."""
    folder = with_vectors(make_bundle(tmp_path_factory.mktemp("mutations") / "original.dyce"))
    (folder / RECORDS).parent.mkdir()
    scores = np.random.default_rng(0).random((300, 3), np.float32)
    np.savez(folder / RECORDS, exit=["3", "7"], head=["linear"] * 2, scores=scores, split=["test"] * 300)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][RECORDS] = sha256_of(folder / RECORDS)
    write(folder / MANIFEST, manifest)
    return folder


def answers(folder: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Logits and exits of images under every configuration that is not stored in the bundle."""
    images, found = make_images(16), []
    with load(folder, target="onnxruntime", threads=1) as session:
        Observation(session)
        for configuration in CONFIGURED:
            session.use(configuration)
            result = session(images)
            found.append((result.logits, result.exit))
    return found


@pytest.mark.parametrize("mutate", [mutate_document, mutate_file, exchange_files])
def test_a_mutated_bundle_is_refused_or_computes_the_same(
    original: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, mutate: Callable
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    expected, outcomes = answers(original), {"refused": 0, "same": 0}

    @settings(max_examples=settings.default.max_examples * 4, suppress_health_check=[HealthCheck.too_slow])
    @given(st.integers(0, 2**32))
    def check(seed: int) -> None:
        folder = shutil.copytree(original, tmp_path_factory.mktemp("mutated") / "model.dyce")
        mutate(folder, random.Random(seed))
        rehash(folder)
        try:
            found = answers(folder)
        except DyceError:
            outcomes["refused"] += 1
            return
        finally:
            shutil.rmtree(folder)
        for (logits, exits), (expected_logits, expected_exits) in zip(found, expected, strict=True):
            np.testing.assert_allclose(logits, expected_logits, rtol=1e-3, atol=1e-3)
            np.testing.assert_array_equal(exits, expected_exits)
        outcomes["same"] += 1

    check()
    assert outcomes["refused"] > 0, outcomes
