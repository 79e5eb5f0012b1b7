"""What all verbs share: where output goes, how errors end, JSON documents, progress bars.

stdout carries results only; progress, warnings and errors go to stderr. With ``--json`` stdout gets one document,
on failure too.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, TypeVar

import msgspec
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from dyce_calibration.launcher import is_main
from dyce_export.progress import Progress
from dyce_runtime.errors import DyceError, UsageError

SCHEMA_VERSION = "1.0"
EXIT_USAGE = 2
EXIT_BUG = 70
EXIT_INTERRUPTED = 130
_TABLE_WIDTH = 140

_Item = TypeVar("_Item")
# click's UsageError, by whichever road: some versions of typer bring a click of their own.
_WrongWords: Any = typer.BadParameter.__bases__[0]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more: every step, and where an error arose.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no warnings.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads per call; the engine decides without it.")]
MinAgreement = Annotated[
    float,
    typer.Option(min=0, max=1, help="Share of samples that have to leave where they do in float32."),
]
MaxPrecisionLoss = Annotated[
    float, typer.Option(min=0, max=1, help="What a lower precision may take from the full model's accuracy.")
]

out = Console(soft_wrap=True)
err = Console(stderr=True, soft_wrap=True)


def set_up(*, verbose: bool = False, quiet: bool = False) -> None:
    """Send log messages of our packages to stderr, at the level asked for; of several processes one speaks."""
    quiet = quiet or not is_main()
    level = logging.ERROR if quiet else logging.DEBUG if verbose else logging.INFO
    handler = RichHandler(console=err, show_time=False, show_path=False, rich_tracebacks=False)
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name in ("dyce_export", "dyce_runtime", "dyce_calibration", "dyce_targets"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level)


def print_json(command: str, document: Mapping[str, Any]) -> None:
    """One successful JSON document on stdout."""
    _write_json({"schema_version": SCHEMA_VERSION, "command": command, "status": "ok", **document})


def print_table(title: str, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """A table on stdout; every column but the first is right-aligned. Wider than the terminal, it is not folded."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=0)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*("" if cell is None else str(cell) for cell in row))
    out.print(title, style="bold", highlight=False)
    # Figures that are cut off are worth nothing: a narrow terminal may wrap the lines.
    Console(width=max(out.width, _TABLE_WIDTH)).print(table)


@contextmanager
def progress_bar(*, quiet: bool) -> Iterator[Callable[[Iterable[_Item], str], Iterable[_Item]]]:
    """A function that draws a bar on stderr while it passes items through; nothing where stderr is no terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=err, disable=quiet or not err.is_terminal, transient=True) as bars:
        yield lambda items, description: bars.track(items, description=description)


class _DrawnProgress(Progress):
    def __init__(self, track: Callable[[Iterable[Any], str], Iterable[Any]], *, quiet: bool) -> None:
        super().__init__()
        self._track, self._quiet = track, quiet

    def started(self, name: str) -> None:
        if not self._quiet:
            err.print(f"{name} ...", style="dim", highlight=False)

    def track(self, items: Iterable[_Item], description: str) -> Iterable[_Item]:
        return self._track(items, description)


@contextmanager
def drawn_progress(*, quiet: bool) -> Iterator[Progress]:
    """The pipeline's progress on stderr: a line per stage, a bar where something is counted."""
    with progress_bar(quiet=quiet) as track:
        yield _DrawnProgress(track, quiet=quiet)


def run(app: typer.Typer, name: str, arguments: list[str] | None = None) -> int:
    """Run a command line and return its exit code; nothing escapes but KeyboardInterrupt's code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    set_up()
    words = [word for word in arguments if not word.startswith("-")]
    verb = name.removeprefix("dyce-") if "-" in name else next(iter(words), "")
    command = typer.main.get_command(app)
    try:
        result = command.main(args=arguments, prog_name=name, standalone_mode=False)
        return result if isinstance(result, int) else 0
    except DyceError as error:
        return _fail(verb, arguments, error.code, error.message, error.hint, error.exit_code)
    except _WrongWords as error:
        hint = f"`{name} --help` lists the options."
        return _fail(verb, arguments, UsageError.code, error.format_message(), hint, EXIT_USAGE)
    except (KeyboardInterrupt, typer.Abort):
        err.print("interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return 1
    except Exception as error:  # the last line of defence: our own bugs
        message = f"{type(error).__name__}: {error}"
        code = _fail(verb, arguments, "bug", message, "This is a bug of dyce-export; please report it.", EXIT_BUG)
        err.print(traceback.format_exc(), markup=False, highlight=False)
        return code


def _fail(verb: str, arguments: list[str], code: str, message: str, hint: str, exit_code: int) -> int:
    if "--json" in arguments:
        error = {"code": code, "message": message, "hint": hint}
        _write_json({"schema_version": SCHEMA_VERSION, "command": verb, "status": "error", "error": error})
    err.print("[bold red]error:[/] ", end="")
    err.print(message, markup=False, highlight=False)
    if hint:
        err.print("[bold]hint:[/] ", end="")
        err.print(hint, markup=False, highlight=False)
    if {"-v", "--verbose"} & set(arguments) and exit_code != EXIT_BUG:
        err.print(traceback.format_exc(), markup=False, highlight=False)
    return exit_code


def _write_json(document: Mapping[str, Any]) -> None:
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n")
    sys.stdout.flush()
