from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.export import ExportedProgram

import dyce_export
from dyce_export.pipeline import Export
from tests.exporter import asked_once, decomposed_once
from tests.integration.digits import Digits, export_digits
from tests.models import INPUT_SIZE, Convolutions, build

_export = asked_once(torch.onnx.export)
_decompose = decomposed_once(ExportedProgram.run_decompositions)


@pytest.fixture(scope="module")
def same_graphs_once() -> Iterator[None]:
    """For a module that does not look at what torch makes of a graph: it is asked once for the same one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", _export)
        patch.setattr(ExportedProgram, "run_decompositions", _decompose)
        yield


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """A bundle without data, with two exits; for reading only."""
    path = tmp_path_factory.mktemp("untrained") / "tiny.dyce"
    return dyce_export.export(build(Convolutions), [1, "b3"], path, input_size=INPUT_SIZE, name="tiny")


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    """For reading only."""
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    return export_digits(tmp_path_factory.mktemp("digits"))
