from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

import dyce_runtime.execution.session
from dyce_runtime import load
from dyce_runtime.targets import registry
from tests.unit.control.simulated import COSTS, FIGURES, Machine, Simulation, priced


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """The target of every session of this module, and the clock that its calls are timed by."""
    machine = Machine()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "find", lambda name=None: machine)
        patch.setattr(dyce_runtime.execution.session, "time", SimpleNamespace(perf_counter=machine.look))
        yield machine


@pytest.fixture(scope="module")
def simulation(tiny_bundle: Path, machine: Machine) -> Iterator[Simulation]:
    with load(tiny_bundle) as session:
        session.bundle.configurations = priced(FIGURES)
        yield Simulation(session, machine)


@pytest.fixture
def as_it_was(simulation: Simulation) -> Iterator[None]:
    """Whatever a test does to the simulation, the next one finds it as it was."""
    simulation.machine.now = 0.0
    yield
    simulation.costs = dict(COSTS)
    simulation.session.bundle.configurations = priced(FIGURES)
