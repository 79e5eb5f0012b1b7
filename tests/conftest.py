from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores. With a pool of threads in each, torch took twice as long; set before torch is imported.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import gc
import json
import shutil
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, settings

from dyce_runtime import DyceError, Session, load, open_bundle
from dyce_runtime.measure import bench, piece_costs
from dyce_runtime.targets import registry
from tests.bundles import Clock, Spy, make_bundle

# The machines that run the tests are shared: how long an example takes says nothing.
settings.register_profile("quick", max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("nightly", parent=settings.get_profile("quick"), max_examples=200)
settings.load_profile("quick")


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--target NAME``: what a target of your own has to pass."""
    parser.addoption("--target", metavar="NAME", help="run the conformance suite alone, for this installed target")


def pytest_configure(config: pytest.Config) -> None:
    """Say so if that target does not work here. Where no test says which, it is onnxruntime: nothing is measured."""
    os.environ.setdefault(registry.VARIABLE, "onnxruntime")
    named = config.getoption("--target")
    try:
        if named:
            registry.find(named)
    except DyceError as error:
        raise pytest.UsageError(f"--target {named}: {error}") from error


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the other tests out where one target is asked for."""
    if config.getoption("--target"):
        kept = [item for item in items if item.path.parent.name == "conformance"]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Write out names of another encoding in what a test logged: they could not be sent from process to process."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Once torch's exporter is there, let it keep the list of operators that it parses anew for every export."""
    apis = sys.modules.get("onnxscript._framework_apis.torch_2_11")
    if apis is not None and not hasattr(apis.get_torchlib_ops, "cache_info"):
        apis.get_torchlib_ops = cache(apis.get_torchlib_ops)


def pytest_collection_finish(session: pytest.Session) -> None:
    """What was imported stays: the garbage collector need not look at it again and again."""
    gc.freeze()


@pytest.fixture(autouse=True)
def onnxruntime_pool_of_the_process() -> Iterator[None]:
    """A test that makes it, as ``dyce run`` does, needs a process of its own: no later test could open a session."""
    yield
    module = sys.modules.get("dyce_targets.cpu.onnxruntime_cpu")
    assert module is None or module._global_pool_threads is None, "onnxruntime's process-wide pool was made here"


@pytest.fixture(scope="session", autouse=True)
def every_bundle_fits_the_schema(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Whatever bundle the tests have made, and ours opens, an independent validator accepts, too."""
    yield
    from jsonschema import Draft202012Validator

    folder = Path(__file__).parents[1] / "docs" / "schema"
    for name in ("manifest", "configurations"):
        validator = Draft202012Validator(json.loads((folder / f"{name}-2.schema.json").read_text()))
        for path in tmp_path_factory.getbasetemp().rglob(f"{name}.json"):
            with suppress(DyceError):
                open_bundle(path.parent, check_hashes=False)
                validator.validate(json.loads(path.read_bytes()))


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with the exits 3 and 7; for reading only."""
    return make_bundle(tmp_path_factory.mktemp("bundles") / "tiny.dyce")


@pytest.fixture(scope="session")
def untrained_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with heads that were never trained."""
    return make_bundle(tmp_path_factory.mktemp("bundles") / "untrained.dyce", heads="untrained")


@pytest.fixture
def bundle_copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of ``tiny_bundle`` to damage."""
    return shutil.copytree(tiny_bundle, tmp_path / "copy.dyce")


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    """The target that every session of this test gets."""
    spy = Spy()
    monkeypatch.setattr(registry, "find", lambda name=None: spy)
    return spy


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, spy: Spy) -> Clock:
    """The clock of everything that measures, turned by the pieces alone."""
    clock = Clock()
    spy.before = clock.run
    fake = SimpleNamespace(perf_counter=lambda: clock.now, sleep=clock.pass_by, strftime=time.strftime)
    for module in (bench, piece_costs):
        monkeypatch.setattr(module, "time", fake)
    return clock


@pytest.fixture(scope="session")
def shared_session(tiny_bundle: Path) -> Iterator[Session]:
    """A session on ``tiny_bundle``; whoever uses it turns the knob first."""
    with load(tiny_bundle, threads=1) as session:
        yield session


@pytest.fixture
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's cache that nobody else uses."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def spied(spy: Spy, tiny_bundle: Path) -> Iterator[Session]:
    """A session on ``tiny_bundle`` that ``spy`` watches."""
    with load(tiny_bundle, threads=1) as session:
        yield session


@pytest.fixture(scope="session")
def cascade_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with two savers before the exits 3 and 7; for reading only."""
    from tests.cascades import make_cascade

    return make_cascade(tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="session")
def sequence_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with an exit sequence network at both exits."""
    from tests.sequences import make_sequence

    return make_sequence(tmp_path_factory.mktemp("sequence"))
