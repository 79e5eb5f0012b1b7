from __future__ import annotations

import pytest

from dyce_runtime import targets
from tests.gpu_double import GpuDouble


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run for the target of ``--target``, or for all that work here and for the logic of a GPU above a double."""
    if "target" in metafunc.fixturenames:
        named = metafunc.config.getoption("--target")
        metafunc.parametrize("target", [named] if named else [*targets.working(), GpuDouble.name], indirect=True)


@pytest.fixture
def target(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of the target under test."""
    get = targets.get
    monkeypatch.setattr(targets, "get", lambda name: GpuDouble() if name == GpuDouble.name else get(name))
    return str(request.param)
