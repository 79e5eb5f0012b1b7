from __future__ import annotations

import pytest

from dyce_runtime import DyceError, targets


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run for the target of ``--target``, or for all that work here."""
    if "target" in metafunc.fixturenames:
        named = metafunc.config.getoption("--target")
        try:
            working = [targets.find(named).name] if named else targets.working()
        except DyceError as error:
            raise pytest.UsageError(f"--target {named}: {error}") from error
        metafunc.parametrize("target", working)
