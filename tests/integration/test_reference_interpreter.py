"""The runtime against an interpreter that shares nothing with it: pieces, exits and answers of 500 samples each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from dyce_runtime import Configuration, Session, load
from dyce_runtime.bundle.configuration import Configurations, Entry
from dyce_runtime.bundle.reader import open_bundle, write_configurations
from dyce_runtime.control.work_cap import capped
from dyce_runtime.errors import ConfigurationError
from dyce_runtime.execution.plan import pieces_of
from tests import bundles, cascades, choices, sequences
from tests.reference_interpreter import Interpreter

SAMPLES = 500
Inputs = dict[str, NDArray[np.float32]]
_sequence = {
    "late": sequences.Configuration("late", {"7": sequences.ExitSetting(sequences.TYPE, 0.4)}),
    "all": sequences.Configuration(
        "all",
        {
            "saver0.2": sequences.ExitSetting(bundles.HEAD, 0.9),
            "saver1": sequences.ExitSetting("builtin", 0.9),
            "3": sequences.ExitSetting(sequences.TYPE, 0.5),
            "7": sequences.ExitSetting(sequences.TYPE, 0.4),
        },
    ),
    "mixed": sequences.Configuration(
        "mixed", {"3": sequences.ExitSetting(bundles.HEAD, 0.7), "7": sequences.ExitSetting(sequences.TYPE, 0.3)}
    ),
}
_savers = {
    "first": Configuration("first", cascades.on(saver0_2=0.5, saver0=0.6)),
    "second": Configuration("second", cascades.on(saver1=0.5, exit7=0.6)),
    "every": Configuration("every", cascades.on(saver0_2=0.8, saver0=0.8, saver1=0.8, exit3=0.6, exit7=0.6)),
}


class Case:
    """A bundle with the configurations that it names, and 500 samples for it."""

    def __init__(self, path: Path, named: dict[str, Configuration], make: Callable[[int], Inputs]) -> None:
        entries = {name: Entry(one.exits, gates=one.gates) for name, one in named.items()}
        before = open_bundle(path).configurations.named
        write_configurations(Configurations(named={**before, **entries}), path)
        self.path, self.inputs = path, make(SAMPLES)
        self.interpreter = Interpreter(path)


CASES: dict[str, Callable[[Path], Case]] = {
    "exits": lambda folder: Case(
        bundles.make_bundle(folder / "a.dyce"), {}, lambda count: {"image": bundles.make_images(count)}
    ),
    "savers": lambda folder: Case(cascades.make_cascade(folder), _savers, cascades.make_inputs),
    "sequence": lambda folder: Case(sequences.make_sequence(folder), _sequence, cascades.make_inputs),
    "choices": lambda folder: Case(
        choices.make_choices(folder / "c.dyce"), choices.NAMED, lambda count: {"image": bundles.make_images(count)}
    ),
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return CASES[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture
def session(case: Case) -> Iterator[Session]:
    with load(case.path, "onnxruntime", threads=1) as opened:
        yield opened


def rows(inputs: Inputs, part: slice) -> Any:
    """As a session takes it."""
    some = {name: images[part] for name, images in inputs.items()}
    return some if len(some) > 1 else next(iter(some.values()))


def compare(case: Case, session: Session, cap: tuple[str, str] | None = None) -> set[int]:
    """Every sample alone and in batches of 33; returns the exits that were taken."""
    configuration = session.configuration
    exits, gates = (msgspec.to_builtins(part) for part in (configuration.exits, configuration.gates))
    samples = [{name: images[row : row + 1] for name, images in case.inputs.items()} for row in range(SAMPLES)]
    wanted = [case.interpreter(sample, exits, gates, cap) for sample in samples]
    together = [session(rows(case.inputs, slice(start, start + 33))) for start in range(0, SAMPLES, 33)]
    alone = [session(rows(case.inputs, slice(row, row + 1))) for row in range(SAMPLES)]
    expected = np.array([exit for exit, _, _ in wanted])
    for found in (together, alone):
        np.testing.assert_array_equal(np.concatenate([result.exit for result in found]), expected)
        logits = np.concatenate([result.logits for result in found])
        np.testing.assert_allclose(logits, [own for _, own, _ in wanted], rtol=1e-4, atol=1e-4)
        scores = np.concatenate([result.confidence for result in found])
        np.testing.assert_allclose(scores, [own for _, _, own in wanted], atol=1e-5)
    return set(expected.tolist())


def test_every_named_configuration_takes_the_exits_of_the_interpreter(case: Case, session: Session) -> None:
    taken = set()
    for name in session.configurations:
        session.use(name)
        taken |= compare(case, session)
    assert len(taken) >= 3, "the samples differ in where they leave"


@pytest.mark.parametrize("share", [0.5, 0.9, 1.3])
def test_a_cap_takes_the_exits_of_the_interpreter(case: Case, session: Session, share: float) -> None:
    capped_once = False
    for name in session.configurations:
        session.use(name)
        try:
            plan = capped(session.manifest, session.plan(name), share, session.pieces)
        except ConfigurationError:  # nothing can leave for as little as that
            continue
        last = plan.leaves[-1]
        exit = session.manifest.exits[last.exit]
        head = next(head.type for head in exit.heads if head.piece == last.piece)
        session.cap = lambda _, count, plan=plan: plan  # type: ignore[misc]
        assert max(compare(case, session, (exit.id, head))) <= last.exit
        session.cap = None
        capped_once = True
    assert capped_once


def test_what_the_interpreter_asks_for_is_what_the_plan_runs(case: Case, session: Session) -> None:
    """A sample that never leaves early asks for all that its configuration needs."""
    for name in session.configurations:
        session.use(name)
        exits = {id: {"head": on.head, "threshold": 1.0} for id, on in session.configuration.exits.items()}
        gates = msgspec.to_builtins(session.configuration.gates)
        asked: set[str] = set()
        for row in range(SAMPLES):
            case.interpreter({n: images[row : row + 1] for n, images in case.inputs.items()}, exits, gates)
            asked |= set(case.interpreter.ran)
        manifest = session.manifest
        runs = {part for id in pieces_of([session.plan(name)]) for part in manifest.piece(id).covers or (id,)}
        branches = {id for id in runs if manifest.piece(id).role == "branch"}  # of which no sample may need all
        assert runs - branches <= asked <= runs, name
