"""What the machine does to a command: full and closed outputs, resources that give out, keys that interrupt."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys

import pytest
import typer

from dyce_export.cli import console
from dyce_export.cli.terminal import Terminal
from tests.unit.cli.command import SCRIPT


def commands(error: BaseException | None) -> typer.Typer:
    """A command line that prints, or fails with an error."""
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def command(json: console.Json = False) -> None:
        if error is not None:
            raise error
        if json:
            console.print_json("x", {"name": "猫"})
        else:
            console.out.print("猫")

    return app


def chained(cause: Exception) -> Exception:
    error = ValueError("what a library makes of it")
    error.__cause__ = cause
    return error


REFUSALS = {
    "descriptors": (OSError(errno.EMFILE, os.strerror(errno.EMFILE), "/a/file"), "Too many open files: /a/file"),
    "disk": (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "No space left on device"),
    "rights": (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/root/x"), "Permission denied: /root/x"),
    "memory": (MemoryError(), "out of memory"),
    "threads": (RuntimeError("can't start new thread"), "start more threads"),
    "library": (ImportError("libx.so: failed to map segment from shared object"), "out of memory"),
    "torch": (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), "memory"),
    "wrapped": (chained(OSError(errno.EMFILE, os.strerror(errno.EMFILE))), "Too many open files"),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_what_the_machine_refuses_is_one_sentence(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    error, words = REFUSALS[kind]
    assert console.run(commands(error), "dyce", ["--json"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["error"]["code"] == "machine"
    assert words in captured.err
    assert "Traceback" not in captured.err
    assert "report" not in captured.err


def test_a_bug_is_still_a_bug(capsys: pytest.CaptureFixture[str]) -> None:
    assert console.run(commands(RuntimeError("index 5 is out of range")), "dyce", ["--json"]) == 70
    assert "please report it" in capsys.readouterr().err


def test_an_interrupted_command_prints_a_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert console.run(commands(KeyboardInterrupt()), "dyce", ["--json"]) == 130
    captured = capsys.readouterr()
    assert json.loads(captured.out)["error"]["code"] == "interrupted"
    assert captured.err == "interrupted\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no full device")
@pytest.mark.parametrize("arguments", [[], ["--json"]], ids=["text", "json"])
@pytest.mark.parametrize("error", [None, KeyboardInterrupt(), ValueError("x")], ids=["well", "interrupted", "bug"])
def test_a_full_output_is_a_failure_in_words(
    arguments: list[str],
    error: BaseException | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    full = open("/dev/full", "w")  # noqa: SIM115 (closed with what it holds)
    monkeypatch.setattr(sys, "stdout", full)
    monkeypatch.setattr(console, "out", Terminal())  # it keeps what it could not write
    expected = {None: 1, KeyboardInterrupt: 130, ValueError: 70}[None if error is None else type(error)]
    assert console.run(commands(error), "dyce", arguments) == expected
    full.close()  # would fail again if anything were left to write
    if error is None:
        assert "No space left on device" in capsys.readouterr().err


def test_a_full_stderr_does_not_hide_how_it_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/null", "w") as nowhere:
        full = open("/dev/full", "w")  # noqa: SIM115 (closed with what it holds)
        monkeypatch.setattr(sys, "stderr", full)
        monkeypatch.setattr(console, "err", Terminal(stderr=True))
        monkeypatch.setattr(sys, "stdout", nowhere)
        assert console.run(commands(MemoryError()), "dyce", []) == 1
        full.close()


@pytest.mark.parametrize(("encoding", "words"), [("ascii", b"\\u732b\n"), ("latin-1", b"\\u732b\n")])
def test_an_output_in_another_encoding_gets_every_name(
    encoding: str, words: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding))
    assert console.run(commands(None), "dyce", []) == 0
    assert written.getvalue() == words
    assert console.run(commands(None), "dyce", ["--json"]) == 0
    assert json.loads(written.getvalue()[len(words) :])["name"] == "猫"


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-", "| true"])
def test_a_stream_that_nobody_reads_ends_nothing(closed: str) -> None:
    line = f"'{sys.executable}' -c '{SCRIPT}' inspect nowhere.dyce --json {closed}"
    code = "${PIPESTATUS[0]}" if closed == "| true" else "$?"
    done = subprocess.run(["bash", "-c", f"{line}; exit {code}"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
