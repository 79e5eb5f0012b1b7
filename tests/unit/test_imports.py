"""What a device has not got must not be needed there: every check is a process of its own."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import dyce_runtime
import dyce_targets

WORKSTATION = ("torch", "torchvision", "timm", "onnx", "onnx_ir", "onnxscript", "scipy", "sklearn", "PIL")
ENGINES = ("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx")

_BLOCK = """
import sys
BLOCKED = set(sys.argv[1].split(","))
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Block())
"""


def without(blocked: tuple[str, ...], code: str, *arguments: object) -> None:
    """Run a script in which some packages cannot be imported; it fails if it does."""
    run = [sys.executable, "-c", _BLOCK + code, ",".join(blocked), *map(str, arguments)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


# Every module in a fork, so that none finds what another one has imported: an interpreter for each takes far longer.
_EACH = """
import os, numpy, msgspec
for name in sys.argv[2].split(","):
    if os.fork() == 0:
        try:
            __import__(name)
        except BaseException as error:
            print(f"{name}: {error}", flush=True)
        os._exit(0)
    os.wait()
"""


def not_importable(names: list[str], blocked: tuple[str, ...]) -> str:
    """The modules that cannot be imported where some packages are missing, each with the reason."""
    run = [sys.executable, "-c", _BLOCK + _EACH, ",".join(blocked), ",".join(names)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def modules(package) -> list[str]:
    """Of a package and of all packages in it."""
    prefix = f"{package.__name__}."
    return [package.__name__, *(module.name for module in pkgutil.walk_packages(package.__path__, prefix))]


def test_the_block_blocks():
    with pytest.raises(AssertionError, match="onnx is blocked"):
        without(("onnx",), "import onnx")


def test_a_module_that_needs_what_is_missing_is_named():
    found = not_importable(["dyce_runtime", "dyce_targets.cpu.openvino_cpu", "json"], ("dyce_targets",))
    assert found == "dyce_targets.cpu.openvino_cpu: dyce_targets is blocked\n"


def test_modules_in_folders_are_tried_too():
    assert "dyce_targets.nvidia.tensorrt_executor" in modules(dyce_targets)


def test_no_module_for_the_device_needs_the_workstation_or_an_engine():
    assert not_importable([*modules(dyce_runtime), *modules(dyce_targets)], (*WORKSTATION, *ENGINES)) == ""


def test_importing_the_runtime_brings_nothing_heavy_along():
    code = "import dyce_runtime; found = BLOCKED & set(sys.modules); assert not found, found"
    run = [sys.executable, "-c", f"import sys; BLOCKED = {set(WORKSTATION + ENGINES)!r}; {code}"]
    subprocess.run(run, check=True, timeout=300)


def test_a_bundle_runs_without_the_workstation(tiny_bundle: Path):
    code = """
import numpy, dyce_runtime
with dyce_runtime.load(sys.argv[2]) as session:
    assert session(numpy.zeros((2, 3, 4, 4), numpy.float32)).label.shape == (2,)
"""
    without(WORKSTATION, code, tiny_bundle)


def test_only_preprocessing_needs_pillow(tiny_bundle: Path):
    code = """
import numpy, dyce_runtime
with dyce_runtime.load(sys.argv[2]) as session:
    assert session(session.preprocess(numpy.zeros((6, 6, 3), numpy.uint8))).label.shape == (1,)
"""
    without(tuple(name for name in WORKSTATION if name != "PIL"), code, tiny_bundle)


def test_a_device_can_search_without_torch():
    names = (
        *("records", "splits", "report", "search.costs", "search.exact"),
        *("promises.choose", "promises.certify", "heads.temperature"),
    )
    assert not_importable([f"dyce_calibration.{name}" for name in names], WORKSTATION) == ""


# A package may import those that it names; none of them ever imports it.
MAY_IMPORT = {
    "dyce_runtime": set(),
    "dyce_targets": {"dyce_runtime"},
    "dyce_calibration": {"dyce_runtime"},
    "dyce_export": {"dyce_runtime", "dyce_targets", "dyce_calibration"},
}


def packages_imported_by(path: Path) -> set[str]:
    """Names of the packages that a file imports anywhere, also within functions and for types alone."""
    nodes = [*ast.walk(ast.parse(path.read_text()))]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    return {name.partition(".")[0] for name in names}


def test_an_import_in_a_function_is_found(tmp_path: Path):
    file = tmp_path / "module.py"
    file.write_text("import os.path\ndef f():\n    from dyce_export.options import Options\n")
    assert packages_imported_by(file) == {"os", "dyce_export"}


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_between_packages_point_one_way(package: str):
    (folder,) = importlib.import_module(package).__path__
    files = sorted(Path(folder).rglob("*.py"))
    others = set(MAY_IMPORT) - MAY_IMPORT[package] - {package}
    assert files
    assert {path.name: found for path in files if (found := packages_imported_by(path) & others)} == {}
