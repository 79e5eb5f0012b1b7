"""The documentation keeps its word."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from click import Context

from dyce_export.cli.main import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
OPTIONS = {option for command in COMMANDS.values() for parameter in command.params for option in parameter.opts}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_option_that_a_page_names_exists(page: Path) -> None:
    """Also where it stands in a sentence; a verb of its own is not known there."""
    named = {
        option for line in page.read_text().splitlines() for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", line)
    }
    elsewhere = {"--help", "--no-deps", "--only", "--nproc-per-node", "--system-site-packages"}
    assert named - OPTIONS - elsewhere == set()


def commands_of(page: Path) -> list[list[str]]:
    """The words of every ``dyce`` command in the blocks of a page."""
    text = page.read_text().replace("\\\n", " ")
    lines = re.findall(r"^(?: {4})?(dyce(?:-export)? .*)$", text, re.MULTILINE)
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def test_every_documented_command_has_options_that_its_verb_takes() -> None:
    found = [words for page in PAGES for words in commands_of(page)]
    assert {words[1] for words in found if words[0] == "dyce"} >= {"run", "bench", "search", "lower", "compile"}
    for program, *arguments in found:
        verb = "export" if program == "dyce-export" else arguments.pop(0)
        command = COMMANDS[verb]
        command.make_parser(Context(command, info_name=verb)).parse_args(arguments)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_first_screen_of_the_readme_holds_the_two_commands() -> None:
    first_screen = "\n".join((ROOT / "README.md").read_text().splitlines()[:20])
    assert "make demo" in first_screen
    assert "make test" in first_screen


def test_ci_runs_the_readmes_own_test_command() -> None:
    assert re.search(r"^make test$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)


def test_the_python_of_the_readme_runs(tiny_bundle: Path, tmp_path: Path) -> None:
    from PIL import Image

    for name in ("cat.jpg", "dog.jpg"):
        Image.new("L", (8, 8), 90).save(tmp_path / name)
    (tmp_path / "resnet18.dyce").symlink_to(tiny_bundle)
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert code is not None
    done = subprocess.run([sys.executable, "-c", code[1]], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_results_in_the_readme_are_those_that_benchmarks_stored() -> None:
    from benchmarks import readme

    found, text = readme.rows(), (ROOT / "README.md").read_text()
    assert text == readme.renewed(text, readme.table(found))
    assert readme.PICTURE.read_text() == readme.picture(found)
    assert all((ROOT / "benchmarks" / f"{row.script.replace('.', '/')}.py").is_file() for row in found)


def test_the_limits_that_the_runtime_misses_are_named() -> None:
    import json

    from benchmarks import overhead

    results = json.loads(overhead.RESULTS.read_text())
    assert overhead.PAGE.read_text() == overhead.page(results)
    assert "*own*: 10 of 10 (every model)" in overhead.page(results)


def test_every_page_is_in_the_sites_navigation() -> None:
    named = (ROOT / "mkdocs.yml").read_text()
    pages = [page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")]
    assert [page for page in pages if page not in named] == []


def test_every_file_that_the_architecture_names_exists() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    named = re.findall(r"`((?:runtime|targets|calibration|dyce_export|benchmarks|tests|docs)/[\w./]*)`", text)
    assert len(named) > 50
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_room_has_its_word_on_the_architecture_and_in_its_picture() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    picture = (ROOT / "docs" / "pictures" / "architecture.svg").read_text()
    packages = ("runtime/dyce_runtime", "targets/dyce_targets", "calibration/dyce_calibration", "dyce_export")
    rooms = [file.parent.name for package in packages for file in (ROOT / package).glob("*/__init__.py")]
    assert [room for room in rooms if f"`{room}/`" not in text] == []
    assert [room for room in rooms if f">{room}</text>" not in picture] == []
