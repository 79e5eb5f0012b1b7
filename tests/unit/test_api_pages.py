"""The reference in docs/api: what it declares exists, and what is public is declared and described."""

from __future__ import annotations

import inspect
import pydoc
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from dyce_runtime.bundle.reader import RECORDS
from tests.bundles import HEAD
from tests.unit.promises.test_choose import make_records
from tests.unit.test_public_api import CONTRACT, FIELDS, NAMES, PARAMETERS

PAGES = Path(__file__).parents[2] / "docs" / "api"
DECLARED = [
    name for page in sorted(PAGES.glob("*.md")) for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)
]


def with_own_classes(declared: object) -> list[object]:
    """What an entry describes: of a module the classes that it defines."""
    if not isinstance(declared, ModuleType):
        return [declared]
    return [one for one in vars(declared).values() if inspect.isclass(one) and one.__module__ == declared.__name__]


def described() -> list[object]:
    return [one for name in DECLARED for one in with_own_classes(pydoc.locate(name))]


def owner(public: object) -> object:
    """The class of a method, or the function or class itself."""
    name = public.__qualname__.rpartition(".")[0]  # type: ignore[attr-defined]
    return getattr(sys.modules[public.__module__], name) if name else public


def public_members(kind: type) -> dict[str, object]:
    """Methods and properties that a class itself defines."""
    members = {name: getattr(own, "__func__", own) for name, own in vars(kind).items() if name[0] != "_"}
    return {name: own for name, own in members.items() if inspect.isfunction(own) or isinstance(own, property)}


@pytest.mark.parametrize("name", DECLARED)
def test_what_a_page_declares_exists(name: str) -> None:
    assert pydoc.locate(name) is not None


def test_no_name_is_declared_twice() -> None:
    assert sorted(set(DECLARED)) == sorted(DECLARED)


def test_every_public_name_has_an_entry() -> None:
    exported = [getattr(package, name) for package in NAMES for name in package.__all__]
    pinned = [owner(public) for public in (*PARAMETERS, *FIELDS, *CONTRACT)]
    known = described()
    assert [public for public in (*exported, *pinned) if not any(public is one for one in known)] == []


def test_every_entry_and_every_public_member_has_a_docstring() -> None:
    silent = []
    for one in described():
        members = public_members(one) if inspect.isclass(one) else {}
        text = one.__doc__ or ""
        # A dataclass without a docstring gets its signature as one.
        if not text.strip() or text.startswith(f"{one.__name__}("):  # type: ignore[attr-defined]
            silent.append(one)
        silent += [f"{one.__name__}.{name}" for name, own in members.items() if not own.__doc__]  # type: ignore[attr-defined]
    assert silent == []


def test_the_example_of_a_search_runs(bundle_copy: Path, tmp_path: Path) -> None:
    bundle = bundle_copy.rename(tmp_path / "model.dyce")
    (bundle / RECORDS).parent.mkdir(exist_ok=True)
    replace(make_records(400), heads=(("3", HEAD), ("7", HEAD))).save(bundle / RECORDS)
    code = re.search(r"```python\n(.*?)```", (PAGES / "calibration.md").read_text(), re.DOTALL)
    assert code is not None
    done = subprocess.run([sys.executable, "-c", code[1]], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("<accuracy ")
