"""The memory of a bundle, measured in a new process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dyce_runtime import Session, load
from dyce_runtime.errors import TargetError
from dyce_runtime.measure import footprint


def test_the_memory_of_a_bundle_is_not_that_of_the_process_that_asks(tiny_bundle: Path):
    with load(tiny_bundle, threads=1) as session:
        found = footprint.footprint(session)
        ballast = np.ones(40_000_000)  # 320 MB that are in use here
        again = footprint.footprint(session)
    assert ballast.sum() > 0
    for memory in (found, again):
        assert 0 <= memory["model_bytes"] < memory["process_bytes"] < 300e6
    folders = {kind: tiny_bundle / kind for kind in ("segments", "heads", "spans")}
    sizes = {f"{kind}_bytes": sum(f.stat().st_size for f in folder.iterdir()) for kind, folder in folders.items()}
    assert sizes.items() <= found.items()


def test_pieces_that_are_not_open_take_no_room(spied: Session):
    spied.pieces = [piece for piece in spied.pieces if spied.manifest.piece(piece).role != "span"]
    assert footprint.footprint(spied)["spans_bytes"] == 0


def test_a_process_that_ends_leaves_the_memory_unknown(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    def ended(*_: object) -> None:
        raise TargetError("it ended the process")

    monkeypatch.setattr(footprint, "ask", ended)
    with load(tiny_bundle, threads=1) as session:
        found = footprint.footprint(session)
    assert (found["model_bytes"], found["process_bytes"]) == (None, None)
