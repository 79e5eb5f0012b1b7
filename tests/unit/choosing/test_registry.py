"""Packages that are broken: they are left out where nothing needs them, and named where something does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dyce_runtime.bundle.reader import TEST_VECTORS
from dyce_runtime.errors import TargetError
from dyce_runtime.targets import registry
from tests.bundles import make_bundle, with_vectors

# What a package may do when it is imported.
BREAKAGES = {
    "OSError": "raise OSError('libtbb.so.12: cannot open shared object file')",
    "RuntimeError": "raise RuntimeError('Could not determine home directory.')",
    "KeyError": "raise KeyError('getpwuid(): uid not found: 12345')",
    "half installed": "from . import what_is_missing",
    "exits": "raise SystemExit(3)",
    "empty": "",
    "crashes": "import os; os.abort()",
}
LOAD = """
import json, sys
from dyce_runtime import DyceError, load
from tests.bundles import make_images

def report(bundle, *target):
    try:
        with load(bundle, *target) as session:
            session(make_images(1))
            found = {"target": session.target.name}
    except DyceError as error:
        found = {"code": error.code, "message": error.message, "hint": error.hint}
    engines = [name for name in ("onnxruntime", "openvino", "tensorrt_rtx", "cuda") if name in sys.modules]
    return {**found, "engines": engines}

bundle, *targets = sys.argv[1:]
print(json.dumps([report(bundle), *(report(bundle, target) for target in targets)]))
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_vectors(make_bundle(tmp_path_factory.mktemp("broken") / "tiny.dyce"))


class World:
    """Packages that stand before the real ones, and a cache of one's own."""

    def __init__(self, folder: Path) -> None:
        self.packages = folder / "packages"
        paths = os.pathsep.join([str(self.packages), *filter(None, sys.path), str(Path.cwd())])
        self.env = {**os.environ, "PYTHONPATH": paths, "XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
        self.env.pop(registry.VARIABLE, None)

    def put(self, package: str, content: str) -> None:
        (self.packages / package).mkdir(parents=True)
        (self.packages / package / "__init__.py").write_text(content)

    def put_target(self, name: str, value: str) -> None:
        about = self.packages / f"{name}-1.0.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text(f"[dyce.targets]\n{name} = {value}\n")

    def load(self, bundle: Path) -> dict[str, object]:
        """What a process finds that names no target."""
        return self.load_each(bundle)[0]

    def load_each(self, bundle: Path, *targets: str) -> list[dict[str, object]]:
        """The same, and what it finds then, target after target that it names."""
        script = [sys.executable, "-c", LOAD, str(bundle), *targets]
        done = subprocess.run(script, env=self.env, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)  # type: ignore[no-any-return]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_a_broken_engine_is_left_out_and_named_only_where_it_is_asked_for(
    world: World, bundle: Path, breakage: str
) -> None:
    for package in ("openvino", "tensorrt_rtx", "cuda"):
        world.put(package, BREAKAGES[breakage])
    found, *named = world.load_each(bundle, *(["openvino"] if breakage != "crashes" else []))
    assert (found.get("target"), found["engines"]) == ("onnxruntime", ["onnxruntime"])
    for openvino in named:
        assert openvino["code"] == "target"
        assert "openvino" in str(openvino["message"])


def test_a_broken_engine_shows_in_the_state_of_the_machine(world: World) -> None:
    for package, breakage in (("openvino", "OSError"), ("tensorrt_rtx", "KeyError"), ("cuda", "RuntimeError")):
        world.put(package, BREAKAGES[breakage])
    world.put_target("theirs", "openvino.theirs:Target")
    command = [sys.executable, "-c", "from dyce_export.cli.main import dyce; dyce()", "inspect", "--json"]
    done = subprocess.run(command, env=world.env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    states = {state["name"]: state for state in json.loads(done.stdout)["targets"]}
    assert states["onnxruntime"]["available"]
    for name, said in {"openvino": "libtbb", "rtx": "getpwuid", "theirs": "libtbb"}.items():
        assert said in states[name]["reason"]


@pytest.mark.parametrize(
    ("package", "value"),
    [
        ("import os; os.no_such_thing", "theirs:Target"),
        ("", "theirs:Target"),
        ("raise SystemExit(1)", "theirs:Target"),
        ("class Target:\n    def __init__(self): raise OSError('no device')", "theirs:Target"),
        ("class Target: pass", "theirs:Target"),
        ("class Target:\n    def available(self): raise KeyError('HOME')", "theirs:Target"),
        ("", "there_is_no_such_module:Target"),
    ],
)
def test_a_target_of_another_package_that_is_broken_is_left_out(
    world: World, bundle: Path, package: str, value: str
) -> None:
    world.put("theirs", package)
    world.put_target("theirs", value)
    unnamed, found = world.load_each(bundle, "theirs")
    assert "target" in unnamed
    assert found["code"] == "target"
    assert "theirs" in str(found["message"])


def test_naming_no_target_imports_the_engine_that_runs_and_no_other(world: World, bundle: Path) -> None:
    measured, remembered = world.load(bundle), world.load(bundle)
    assert measured["engines"] == remembered["engines"] == [measured["target"]]


def test_without_a_way_to_start_a_process_it_is_measured_here(world: World, bundle: Path) -> None:
    world.env["PYTHONSTARTUP"] = ""
    script = "import sys; sys.executable = ''\n" + LOAD
    command = [sys.executable, "-c", script, str(bundle)]
    done = subprocess.run(command, env=world.env, capture_output=True, text=True, timeout=120, check=False)
    assert "target" in json.loads(done.stdout)[0], done.stderr


def test_without_test_vectors_the_first_that_opens_runs_a_bundle(world: World, tiny_bundle: Path) -> None:
    assert not (tiny_bundle / TEST_VECTORS).exists()
    world.put("onnxruntime", BREAKAGES["OSError"])
    if registry.unavailable("openvino") is not None:
        pytest.skip("there is no other engine here")
    assert world.load(tiny_bundle)["target"] == "openvino"


@pytest.mark.parametrize("origin", ["argument", "environment"])
def test_a_named_target_that_is_not_available_is_named_with_those_that_are(
    monkeypatch: pytest.MonkeyPatch, origin: str
) -> None:
    if registry.unavailable("tensorrt") is None:
        pytest.skip("TensorRT runs here")
    monkeypatch.setenv(registry.VARIABLE, "tensorrt")
    with pytest.raises(TargetError, match="this machine does not run the target tensorrt: ") as caught:
        registry.find("tensorrt" if origin == "argument" else None)
    assert (registry.VARIABLE in caught.value.message) == (origin == "environment")
    assert "onnxruntime" in caught.value.hint


def test_exports_are_checked_in_onnxruntime_whatever_the_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    for named in ("tensorrt", "openvino", "no such target"):
        monkeypatch.setenv(registry.VARIABLE, named)
        assert registry.reference().name == "onnxruntime"
