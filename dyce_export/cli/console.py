"""Parts common to all verbs: output streams, error handling, JSON documents, progress bars.

stdout carries results only; progress, warnings and errors go to stderr. With ``--json`` stdout receives exactly one
document, even if the command fails.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from importlib.metadata import version
from typing import Annotated, Any, TypeVar

import msgspec
import typer
from rich.box import SIMPLE_HEAD
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from dyce_calibration.launcher import is_main
from dyce_export.cli import bounds, machine
from dyce_export.cli.terminal import EscapedLines, Terminal, bold, escaped
from dyce_export.progress import Progress
from dyce_runtime.errors import DyceError, UsageError

JSON_VERSION = "1.0"
EXIT_USAGE = 2
EXIT_BUG = 70
EXIT_INTERRUPTED = 130
_MOST_COLUMNS = 10_000

_Item = TypeVar("_Item")
# click's UsageError. It is found through typer because some versions of typer bundle their own click.
_WrongWords: Any = typer.BadParameter.__bases__[0]


def _print_version(wanted: bool) -> None:
    if wanted:
        out.print(f"dyce-export {version('dyce-export')}")
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show every step, and a traceback with errors.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no warnings.")]
Threads = Annotated[
    int | None, typer.Option(callback=bounds.threads, help="Threads per call. Default: the engine decides.")
]
MinAgreement = Annotated[
    float,
    typer.Option(callback=bounds.share, help="Share of the pictures that must leave at the same exit as in float32."),
]
MaxPrecisionLoss = Annotated[
    float,
    typer.Option(
        callback=bounds.share, help="Accuracy that the full model may lose in a lower precision, as a fraction."
    ),
]

out = Terminal()
err = Terminal(stderr=True)


def set_up(*, verbose: bool = False, quiet: bool = False) -> None:
    """Send log messages of our packages to stderr; if several processes run, only the main one logs below errors."""
    quiet = quiet or not is_main()
    level = logging.ERROR if quiet else logging.DEBUG if verbose else logging.INFO
    handler = RichHandler(console=err, show_time=False, show_path=False, rich_tracebacks=False)
    handler.setFormatter(EscapedLines("%(message)s"))
    for name in ("dyce_export", "dyce_runtime", "dyce_calibration", "dyce_targets"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level)


def print_json(command: str, document: Mapping[str, Any]) -> None:
    """Print the JSON document of a successful command on stdout."""
    _write_json({"schema_version": JSON_VERSION, "command": command, "status": "ok", **document})


def print_table(title: str, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Print a table on stdout, right-aligned but for the first column; it is never folded to the terminal's width."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=0)
    for index, column in enumerate(columns):
        table.add_column(escaped(column, one_line=True), justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*("" if cell is None else escaped(str(cell), one_line=True) for cell in row))
    out.print(bold(title))
    # Truncated figures would be useless; a narrow terminal may wrap the lines instead.
    needed = out.measure(table, options=out.options.update(max_width=_MOST_COLUMNS)).maximum
    Terminal(width=max(out.width, needed)).print(table, soft_wrap=False)


@contextmanager
def progress_bar(*, quiet: bool) -> Iterator[Callable[[Iterable[_Item], str], Iterable[_Item]]]:
    """Yield a function that draws a bar on stderr while passing items through; silent unless stderr is a terminal."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=err, disable=quiet or not err.is_terminal, transient=True) as bars:
        yield lambda items, description: bars.track(items, description=escaped(description, one_line=True))


class _DrawnProgress(Progress):
    def __init__(self, track: Callable[[Iterable[Any], str], Iterable[Any]], *, quiet: bool) -> None:
        super().__init__()
        self._track, self._quiet = track, quiet

    def started(self, name: str) -> None:
        if not self._quiet:
            err.print(f"{name} ...", style="dim")

    def track(self, items: Iterable[_Item], description: str) -> Iterable[_Item]:
        return self._track(items, description)


@contextmanager
def drawn_progress(*, quiet: bool) -> Iterator[Progress]:
    """Yield a progress that prints a line per stage on stderr, and a bar for items that are counted."""
    with progress_bar(quiet=quiet) as track:
        yield _DrawnProgress(track, quiet=quiet)


def run(app: typer.Typer, name: str, arguments: list[str] | None = None) -> int:
    """Run a command line and return its exit code; no exception escapes."""
    arguments = sys.argv[1:] if arguments is None else arguments
    words = [word for word in arguments if not word.startswith("-")]
    verb = name.removeprefix("dyce-") if "-" in name else next(iter(words), "")
    failed = partial(_fail, verb, arguments)
    try:
        machine.open_streams()
        set_up()
        result = typer.main.get_command(app).main(args=arguments, prog_name=name, standalone_mode=False)
        if result == EXIT_INTERRUPTED:  # typer catches KeyboardInterrupt and returns this
            raise KeyboardInterrupt
        machine.flush_streams()
        return result if isinstance(result, int) else 0
    except DyceError as error:
        return failed(error.code, error.message, error.hint, error.exit_code)
    except _WrongWords as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # the help has been printed
            return 0
        return failed(UsageError.code, error.format_message(), f"`{name} --help` lists the options.", EXIT_USAGE)
    except (KeyboardInterrupt, typer.Abort):
        return failed("interrupted", "interrupted", "", EXIT_INTERRUPTED)
    except (BrokenPipeError, SystemExit):  # the reader closed the pipe, on which rich raises SystemExit
        return DyceError.exit_code
    except Exception as error:
        if (problem := machine.problem_of(error)) is not None:
            return failed("machine", problem, machine.HINT, DyceError.exit_code)
        # Anything else is a bug of ours.
        message = f"{type(error).__name__}: {error}"
        return failed("bug", message, "This is a bug of dyce-export; please report it.", EXIT_BUG)
    finally:
        machine.drop_output()


def _fail(verb: str, arguments: list[str], code: str, message: str, hint: str, exit_code: int) -> int:
    """Report an error on stdout and stderr as far as they are writable; return the exit code."""
    if "--json" in arguments:
        error = {"code": code, "message": message, "hint": hint}
        with suppress(OSError):
            _write_json({"schema_version": JSON_VERSION, "command": verb, "status": "error", "error": error})
    with suppress(OSError, SystemExit):
        if exit_code == EXIT_INTERRUPTED:
            err.print(message)
            return exit_code
        _say("error", message, "bold red")
        if hint:
            _say("hint", hint, "bold")
        if exit_code == EXIT_BUG or {"-v", "--verbose"} & set(arguments):
            err.print(traceback.format_exc())
    return exit_code


def _say(label: str, text: str, style: str) -> None:
    """Print a labelled message on stderr, with further lines indented so that none looks like a separate message."""
    err.print(Text(f"{label}:", style), Text(escaped(text.rstrip("\n")).replace("\n", "\n  ")))


def _write_json(document: Mapping[str, Any]) -> None:
    # ASCII output can be written to a stream of any encoding and contains no raw control characters.
    sys.stdout.write(json.dumps(_finite(msgspec.to_builtins(document)), indent=2, allow_nan=False) + "\n")
    sys.stdout.flush()


def _finite(value: Any) -> Any:
    """Replace numbers that JSON cannot represent (NaN and infinities) by null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value
