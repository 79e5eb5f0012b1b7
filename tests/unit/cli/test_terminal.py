"""Names from anywhere on a terminal: shown as they are, or written out where they would change what is shown."""

from __future__ import annotations

import json
import logging
import unicodedata
from collections.abc import Callable
from io import StringIO

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from dyce_export.cli import console
from dyce_export.cli.terminal import Terminal, bold, escaped
from dyce_runtime.errors import DataError

MARKUP = ["[v2]", "[/x]", "[bold]x[/bold]", "[link=http://x]y[/link]", ":smile:", "[red]", "%s {0}"]
CONTROL = {
    "\x1b[31mred": "\\x1b[31mred",
    "\x1b]0;title\x07": "\\x1b]0;title\\x07",
    "\x9b31m": "\\x9b31m",
    "\roverwritten": "\\roverwritten",
    "\x08\x08": "\\x08\\x08",
    "a\x00b": "a\\x00b",
    "\u202egnp.exe": "\\u202egnp.exe",
    "\u2066x": "\\u2066x",
    "\u2028x": "\\u2028x",
    "\ufeffx": "\\ufeffx",
    "b\udcffd": "b\\udcffd",
}
WAYS = ("print", "bold", "table", "title", "column", "log", "stage", "error", "hint", "bug")


def shown(way: str, name: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What the terminal gets when a name is printed in one of the ways that commands have."""
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def command() -> None:
        ways: dict[str, Callable[[], object]] = {
            "print": lambda: console.out.print(name),
            "bold": lambda: console.out.print(bold(name)),
            "table": lambda: console.print_table("title", ("name",), [(name,)]),
            "title": lambda: console.print_table(name, ("name",), []),
            "column": lambda: console.print_table("title", (name,), []),
            "log": lambda: logging.getLogger("dyce_export").warning("about %s", name),
            "stage": lambda: stage(name),
            "error": lambda: fail(DataError(name)),
            "hint": lambda: fail(DataError("x", hint=name)),
            "bug": lambda: fail(ValueError(name)),
        }
        ways[way]()

    console.run(app, "dyce", [])
    captured = capsys.readouterr()
    return captured.out + captured.err


def stage(name: str) -> None:
    with console.drawn_progress(quiet=False) as progress, progress.stage(name):
        pass


def fail(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("way", WAYS)
def test_markup_in_names_is_printed_and_not_read(way: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name in MARKUP:
        assert name in shown(way, name, capsys)


@pytest.mark.parametrize("way", WAYS)
def test_control_characters_in_names_are_written_out(way: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name, written in CONTROL.items():
        text = shown(way, name, capsys)
        assert written in text
        assert not [c for c in text if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")]


@given(st.text(st.characters(exclude_categories=()), max_size=30))
def test_escaped_text_is_harmless_and_plain_text_stays(text: str) -> None:
    found = escaped(text, one_line=True)
    found.encode("utf-8")
    assert not [c for c in found if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
    assert "".join(c for c in text if unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp")) in found or (
        len(found) > len(text)
    )
    assert escaped("Käfer 猫 👩\u200d🔬 [v2]") == "Käfer 猫 👩\u200d🔬 [v2]"


@pytest.mark.parametrize("way", ["error", "hint", "table"])
def test_a_name_cannot_pass_for_a_message_of_its_own(way: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(way, "x\nerror: all files were removed", capsys)
    assert "all files were removed" in text
    assert not any(line.startswith("error: all") for line in text.splitlines())


@given(st.text(st.characters(exclude_categories=()), max_size=30), st.floats())
def test_json_holds_exact_data_in_any_encoding(text: str, number: float) -> None:
    written: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout.write", written.append)
        console.print_json("x", {"name": text, text: [number]})
    assert "".join(written).isascii()

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    document = json.loads("".join(written), parse_constant=refuse)
    assert document["name"] == text or text == "name"
    assert document[text] == [number if abs(number) < float("inf") else None]


@given(st.lists(st.text("abc", min_size=1, max_size=20), min_size=1, max_size=30))
def test_a_screen_gets_whole_words_and_everything_else_whole_lines(words: list[str]):
    line = " ".join(words)
    for screen, soft_wrap, expected in ((True, None, False), (False, None, True), (True, True, True)):
        file = StringIO()
        Terminal(file=file, width=30, force_terminal=screen, no_color=True).print(line, soft_wrap=soft_wrap)
        lines = file.getvalue().rstrip("\n").split("\n")
        assert " ".join(part.strip() for part in lines) == line
        assert len(lines) == 1 if expected else all(len(part) <= 30 for part in lines)
