"""Spans: what runs between two exits as one graph."""

from __future__ import annotations

import shutil
from itertools import combinations
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from torch import nn

from dyce_export.cascade import export_source
from dyce_export.graph.spans import write_spans
from dyce_export.sources.source import from_module
from dyce_runtime import Configuration, Session, load, open_bundle
from dyce_runtime.bundle.configuration import Configurations, Entry, ExitSetting
from dyce_runtime.bundle.documents import write_document
from dyce_runtime.bundle.manifest import FINAL, UNCUT, Manifest, Piece
from dyce_runtime.bundle.reader import MANIFEST, files_of, sha256_of
from tests.models import INPUT_SIZE, Branches, Convolutions, Folded, Tokens, build, images
from tests.unit.graph.test_pieces import LongSkip


def enabled(manifest: Manifest, numbers: tuple[str, ...]) -> Entry:
    """Those exits are on, and nobody leaves there."""
    heads = {exit.id: exit.heads[0].type for exit in manifest.exits if exit.id != FINAL}
    return Entry(exits={number: ExitSetting(heads[number], 1.0) for number in numbers})


def with_spans(path: Path, *named: tuple[str, ...]) -> tuple[Piece, ...]:
    """Give a bundle spans as if the exits of ``named`` were its named configurations."""
    manifest = open_bundle(path).manifest
    configurations = Configurations(named={"-".join(exits): enabled(manifest, exits) for exits in named})
    spans = write_spans(manifest, configurations, path)
    files = {name: sha256_of(path / name) for name in files_of(path)}
    write_document(msgspec.structs.replace(manifest, pieces=(*manifest.pieces, *spans), files=files), path / MANIFEST)
    return spans


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("spans") / "three.dyce"
    export_source(from_module(build(Convolutions), input_size=INPUT_SIZE), ["1", "2", "3"], path)
    return path


def outputs(session: Session, exits: tuple[str, ...], pixels: np.ndarray) -> np.ndarray:
    session.use(Configuration("mine", enabled(session.manifest, exits).exits))
    return session(pixels).logits


@pytest.mark.parametrize("make", [Convolutions, Tokens, Branches, Folded, LongSkip])
def test_every_span_gives_what_its_segments_give(make: type[nn.Module], tmp_path: Path) -> None:
    chained, spanned = tmp_path / "chained.dyce", tmp_path / "spanned.dyce"
    source = from_module(build(make), input_size=(3, 12, 12) if make is LongSkip else INPUT_SIZE)
    numbers = tuple(exit.id for exit in export_source(source, ["1", "2", "3"], chained).manifest.exits[:-1])
    subsets = [chosen for size in range(len(numbers) + 1) for chosen in combinations(numbers, size)]
    shutil.copytree(chained, spanned)
    for span in with_spans(spanned, *subsets):
        onnx.checker.check_model(spanned / span.file, full_check=True)
    pixels = np.random.default_rng(0).normal(size=(3, *source.input_size)).astype(np.float32)
    with load(chained, allow_untrained=True) as one, load(spanned, allow_untrained=True) as other:
        for exits in subsets:
            for count in (1, 3):
                found = outputs(other, exits, pixels[:count])
                np.testing.assert_allclose(found, outputs(one, exits, pixels[:count]), rtol=1e-4, atol=1e-5)


def test_only_stretches_of_named_configurations_get_a_span(exported: Path, tmp_path: Path) -> None:
    path = shutil.copytree(exported, tmp_path / "copy.dyce")
    spans = with_spans(path, (), ("3",), ("2", "3"), ("1", "2", "3"))
    assert [(span.id, len(span.covers)) for span in spans] == [("span_00_01", 2), ("span_00_02", 3)]
    assert sorted(p.name for p in (path / "spans").iterdir()) == ["full.onnx", "span_00_01.onnx", "span_00_02.onnx"]
    manifest = open_bundle(path).manifest
    for span in spans:
        parts = [manifest.piece(f"segment_{k:02d}") for k in range(len(span.covers))]
        assert [part.id for part in parts] == [*span.covers]
        assert span.macs == sum(part.macs for part in parts)
        assert (span.reads, span.writes) == (parts[0].reads, parts[-1].writes)


def test_the_same_segments_give_the_same_bytes(exported: Path, tmp_path: Path) -> None:
    written = []
    for name in ("one", "other"):
        path = shutil.copytree(exported, tmp_path / name)
        written.append((path / with_spans(path, ("3",))[0].file).read_bytes())
    assert written[0] == written[1]


def test_memory_bounds_which_spans_are_loaded(exported: Path, tmp_path: Path) -> None:
    path = shutil.copytree(exported, tmp_path / "copy.dyce")
    with_spans(path, ("3",), ("2", "3"))
    bundle = open_bundle(path)
    sizes = {piece.id: bundle.memory(piece.id) for piece in bundle.manifest.pieces}
    spans = {id for id in sizes if id.startswith("span") or id == UNCUT}
    base = sum(size for id, size in sizes.items() if id not in spans)
    pixels = images(3).numpy()
    for limit, kept in [
        (base, set()),
        (base + sizes["span_00_01"], {"span_00_01"}),
        (sum(sizes.values()) - 1, {"span_00_01", "span_00_02"}),
        (sum(sizes.values()), spans),
    ]:
        with load(path, allow_untrained=True, max_memory=limit) as session, load(path, allow_untrained=True) as whole:
            assert set(session.pieces) & spans == kept
            np.testing.assert_allclose(
                outputs(session, ("3",), pixels), outputs(whole, ("3",), pixels), rtol=1e-4, atol=1e-5
            )
