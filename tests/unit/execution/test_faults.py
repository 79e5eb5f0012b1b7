"""What happens to a session in a bad world: forks, closing in the middle of a call, huge batches."""

from __future__ import annotations

import math
import multiprocessing
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dyce_runtime import Configuration, DyceError, Session, load
from dyce_runtime.bundle.configuration import Configurations, Entry, Figures
from dyce_runtime.errors import ConfigurationError, PieceError, RuntimeInputError
from tests.bundles import NAMED, Spy, expected, make_images, on

MB = 1 << 20


@pytest.mark.parametrize("count", [1, 4, 5, 11])
def test_a_batch_above_the_largest_runs_in_chunks(spy: Spy, tiny_bundle: Path, count):
    images = make_images(count)
    with load(tiny_bundle, threads=1, max_batch=4) as session:
        session.use("fast")
        result = session(images)
    assert [rows for piece, rows in spy.calls if piece == "segment_00"] == [
        min(4, count - k) for k in range(0, count, 4)
    ]
    answer = expected(images, Configuration("fast", NAMED["fast"]))
    np.testing.assert_array_equal(result.exit, answer.exit)
    np.testing.assert_array_equal(result.logits, answer.logits)


def test_a_largest_batch_of_nothing_is_refused(tiny_bundle: Path):
    with pytest.raises(RuntimeInputError, match="max_batch is 0; expected at least 1"):
        load(tiny_bundle, max_batch=0)


def _ask(session: Session, answers: Any) -> None:
    try:
        session(make_images(1))
        answers.put("answered")
    except DyceError as error:
        answers.put(f"{error.message} {error.hint}")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_is_told_to_load_for_itself(tiny_bundle: Path):
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    with load(tiny_bundle, threads=2) as session:
        session(make_images(1))
        child = context.Process(target=_ask, args=(session, answers))
        child.start()
        child.join(30)
        assert child.exitcode == 0
        assert "before this process was forked" in (answer := answers.get())
        assert "Load the bundle in every process" in answer
        assert session(make_images(1)).label.shape == (1,), "the parent goes on"


def test_closing_lets_a_call_that_runs_end(spied: Session, spy: Spy):
    reached, closed = threading.Event(), threading.Event()

    def wait(piece: str) -> None:
        if piece == "exit_03_linear":
            reached.set()
            assert closed.wait(60)

    spied.use("fast")
    spy.before = wait
    images = make_images(6)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(spied, images)
        assert reached.wait(60)
        spied.close()
        closed.set()
        np.testing.assert_array_equal(call.result(10).exit, expected(images, Configuration("", NAMED["fast"])).exit)
    with pytest.raises(RuntimeInputError, match="closed"):
        spied(images)


def test_a_failure_in_the_middle_of_a_batch_leaves_nothing_behind(spied: Session, spy: Spy):
    """Many times over: a call that fails gives its buffers back."""
    spied.use("fast")
    images = make_images(8)

    def fail(piece: str) -> None:
        if piece == "segment_01":
            raise PieceError(f"piece {piece} failed: the device is gone")

    for _ in range(20):
        spy.before = fail
        with pytest.raises(PieceError, match="piece segment_01 failed"):
            spied(images)
        spy.before = lambda piece: None
        np.testing.assert_array_equal(spied(images).exit, expected(images, spied.configuration).exit)


def test_an_owned_knob_is_turned_by_its_owner_only(shared_session: Session):
    shared_session.use("full")
    turn = shared_session.take_control("a test")
    try:
        for attempt in (
            lambda: shared_session.use("fast"),
            lambda: setattr(shared_session, "budget", 2.0),
            lambda: shared_session.take_control("another test"),
        ):
            with pytest.raises(ConfigurationError, match="a test controls the active configuration of this session"):
                attempt()
        assert shared_session.configuration.name == "full"
        turn(Configuration("mine", on(exit3=0.5)))
        assert shared_session.configuration.name == "mine"
    finally:
        shared_session.release_control()
    shared_session.use("fast")


def test_own_configurations_of_one_name_are_not_mistaken_for_each_other(shared_session: Session):
    images = make_images(30)
    for exits in (on(exit3=0.5), on(exit7=0.5), {}, on(exit3=0.5)):
        shared_session.use(Configuration("full", exits))
        np.testing.assert_array_equal(shared_session(images).exit, expected(images, Configuration("", exits)).exit)
    shared_session.use("full")
    assert (shared_session(images).exit == 2).all()


def test_turning_the_knob_allocates_nothing(shared_session: Session):
    own = [Configuration("one", on(exit3=0.5)), Configuration("other", on(exit7=0.5))]
    names = ["fast", "full"]

    def turn() -> None:
        for configuration in own:
            shared_session.use(configuration)
        for name in names:
            shared_session.use(name)

    turn()
    before = sys.getallocatedblocks()
    for _ in range(1000):
        turn()
    assert sys.getallocatedblocks() - before < 50


def test_an_observer_hears_of_every_call(shared_session: Session):
    heard: list[tuple[int, float]] = []

    def observer(result: Any, seconds: float) -> None:
        heard.append((len(result.label), seconds))

    shared_session.attach(observer)
    try:
        for count in (1, 3):
            shared_session(make_images(count))
    finally:
        shared_session.detach(observer)
    shared_session(make_images(2))
    assert [count for count, _ in heard] == [1, 3]
    assert all(seconds > 0 for _, seconds in heard)


CALLS = '''
import ctypes
import gc
import sys
from pathlib import Path
from random import Random

from dyce_runtime import Configuration, load
from tests.bundles import NAMED, make_images, on

random, most = Random(0), 12
images = make_images(most)
own = [Configuration(f"own {k}", on(exit3=k / 10, exit7=0.5)) for k in range(10)]


def resident():
    """Bytes, without what was freed and not given back to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


with load(sys.argv[1], "onnxruntime", threads=1, max_batch=8) as session:
    for configuration in (*NAMED, *own):
        for count in range(1, most + 1):
            session.use(configuration)
            session(images[:count])

    def calls(number):
        for _ in range(number):
            session.use(random.choice([*NAMED, *own]))
            session(images[: random.randint(1, most)])

    calls(5_000)
    before = resident()
    calls(25_000)
    print(resident() - before)
'''


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_thousands_of_calls_need_no_more_memory_than_the_first(tiny_bundle: Path):
    """In a process of its own: what else ran in this one comes and goes."""
    done = subprocess.run([sys.executable, "-c", CALLS, str(tiny_bundle)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < MB


@pytest.mark.parametrize("set_", ["budget", "own"])
def test_settings_that_come_again_run_what_was_recorded(spied_budgets: Session, set_: str):
    """Whatever their names: a lane records the calls of a plan once."""
    session, images = spied_budgets, make_images(1)
    for turn in range(20):
        if set_ == "budget":
            session.budget = 0.5 + turn / 100
        else:
            session.use(Configuration(f"own {turn}", on(exit3=0.5, exit7=0.5)))
        session(images)
    with session.device.context(1) as context:
        assert len(context._recorded) == 1  # type: ignore[attr-defined]


@pytest.fixture
def spied_budgets(tiny_bundle: Path) -> Iterator[Session]:
    """A session in which one configuration fits every budget from a half on."""
    with load(tiny_bundle, threads=1) as session:
        figures = Figures(0.8, 0.1, 0.4, 100, ())
        session.bundle.configurations = Configurations(named={"fast": Entry(NAMED["fast"], search=figures)})
        yield session


@pytest.mark.parametrize("threads", [0, -1, 65 + 10**6, 2**63, 1.5, True, "x", math.nan])
def test_threads_out_of_range_are_refused(tiny_bundle: Path, threads: Any):
    with pytest.raises(RuntimeInputError, match=r"threads is .*; expected at least 1 and at most"):
        load(tiny_bundle, threads=threads)


@pytest.mark.parametrize(
    "words",
    [
        *({"max_batch": value} for value in (-1, 2**31, 1.5, "x", True)),
        *({"max_memory": value} for value in (-1, "x", math.nan, b"1")),
        *({"pool": value} for value in ("x", None, 5, [])),
        *({"mode": value} for value in ("x", None, "LATENCY")),
        *({"precision": value} for value in ("x", "", 5, b"uint8")),
        *({"target": value} for value in ("x", "", 5, b"onnxruntime", Path("onnxruntime"))),
    ],
    ids=str,
)
def test_arguments_of_the_wrong_kind_or_range_are_refused(tiny_bundle: Path, words: dict[str, Any]):
    with pytest.raises(DyceError, match=r"is .*; expected|has no|there is no target"):
        load(tiny_bundle, **{"target": "onnxruntime", **words})


@pytest.mark.parametrize(
    "path", ["", "/dev/null", "x" * 300, "x/" * 3000, "a\0b", b"x", None, 5, "\udcff", []], ids=range(10)
)
def test_what_is_no_path_of_a_bundle_is_refused(path: Any):
    with pytest.raises(DyceError) as caught:
        load(path)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("value", [None, 5, b"full", [], 0.5], ids=str)
def test_what_is_no_configuration_is_refused(shared_session: Session, value: Any):
    shared_session.use("fast")
    with pytest.raises(ConfigurationError, match="expected the name of a configuration, or a Configuration"):
        shared_session.use(value)
    for name in (None, 5, [], "x" * 10**6):
        with pytest.raises(ConfigurationError, match="the name of a configuration is"):
            shared_session.use(Configuration(name, {}))  # type: ignore[arg-type]
    if value is not None:
        with pytest.raises(RuntimeInputError, match="expected a function"):
            shared_session.attach(value)
    assert shared_session.configuration.name == "fast"


@pytest.mark.parametrize("budget", [None, "0.5", True, [], 0.5j])
def test_a_budget_that_is_no_number_is_refused(shared_session: Session, budget: Any):
    with pytest.raises(ConfigurationError, match="the budget is"):
        shared_session.budget = budget
