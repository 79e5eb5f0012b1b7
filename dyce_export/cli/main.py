"""Entry points: ``dyce`` and ``dyce-export`` (the same as ``dyce export``)."""

from __future__ import annotations

import signal
from typing import NoReturn

import typer

from dyce_export.cli import bench, compile, console, export, inspect, lower, run, search, select_saver

app = typer.Typer(
    help="Early-exit image classifiers: export, run, measure.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
app.command("export", help=export.HELP)(export.command)
app.command("compile", help=compile.HELP)(compile.command)
app.command("lower", help=lower.HELP)(lower.command)
app.command("run", help=run.HELP)(run.command)
app.command("bench", help=bench.HELP)(bench.command)
app.command("search", help=search.HELP)(search.command)
app.command("select-saver", help=select_saver.HELP)(select_saver.command)
app.command("inspect", help=inspect.HELP)(inspect.command)

export_app = typer.Typer(add_completion=True, pretty_exceptions_enable=False)
export_app.command(help=export.HELP)(export.command)


def dyce() -> NoReturn:
    """``dyce VERB ...``."""
    _main(app, "dyce")


def dyce_export() -> NoReturn:
    """``dyce-export MODEL ...``."""
    _main(export_app, "dyce-export")


def _main(commands: typer.Typer, name: str) -> NoReturn:
    # A job that is told to end cleans up behind itself like one that is interrupted from the keyboard.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    raise SystemExit(console.run(commands, name))
