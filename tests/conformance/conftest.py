from __future__ import annotations

import pytest

from dyce_runtime import targets


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run for the target of ``--target``, or for all that work here."""
    if "target" in metafunc.fixturenames:
        named = metafunc.config.getoption("--target")
        metafunc.parametrize("target", [named] if named else targets.working())
