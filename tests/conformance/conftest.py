from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from functools import cache

import pytest

from dyce_runtime.targets import registry
from tests.cuda_double import Driver, ProviderDouble, installed
from tests.gpu_double import GpuDouble

working = cache(registry.working)  # it looks at every package that is installed
DOUBLES = {double.name: double for double in (GpuDouble, ProviderDouble)}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run for the target of ``--target``, or for all that work here and for the logic of a GPU above doubles."""
    if "target" in metafunc.fixturenames:
        named = metafunc.config.getoption("--target")
        metafunc.parametrize("target", [named] if named else [*working(), *DOUBLES], indirect=True)


@pytest.fixture
def target(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Name of the target under test. Doubles stand above a double of the driver, real targets above the real one."""
    get = registry.get
    monkeypatch.setattr(registry, "get", lambda name: DOUBLES[name]() if name in DOUBLES else get(name))
    with installed(Driver()) if request.param in DOUBLES else nullcontext():
        yield str(request.param)
