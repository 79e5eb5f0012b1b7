"""What the command says of itself."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import version

import pytest

from tests.unit.cli.command import dyce_here

VERBS = ("export", "inspect", "run", "bench", "search", "select-saver", "lower", "compile")


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_without_anything_or_asked_for_help_the_verbs_are_shown(arguments: list[str]) -> None:
    done = dyce_here(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(f" {verb} " in done.stdout for verb in VERBS)


@pytest.mark.parametrize("script", ["dyce", "dyce_export"])
def test_the_version_is_that_of_the_package(script: str) -> None:
    code = f"from dyce_export.cli.main import {script} as main; main()"
    done = subprocess.run([sys.executable, "-c", code, "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"dyce-export {version('dyce-export')}\n"


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_shows_flags_without_a_type(verb: str) -> None:
    long, short = (dyce_here(verb, flag) for flag in ("--help", "-h"))
    assert (long.returncode, long.stderr) == (0, "")
    assert long.stdout == short.stdout
    assert "bool" not in long.stdout
    assert "list[" not in long.stdout


def test_the_many_options_of_an_export_stand_in_groups() -> None:
    titles = re.findall(r"╭─ ([A-Z][\w ]+?) ─", dyce_here("export", "--help").stdout)
    assert {"Model", "How pictures are prepared", "Exits and savers", "Pictures", "Training", "Result"} <= set(titles)


def test_an_export_without_exits_is_told_that_they_can_be_chosen_for_it() -> None:
    assert "--exits auto" in dyce_here("export", "model.pt").stderr
