"""Entry points: ``dyce`` and ``dyce-export`` (the same as ``dyce export``)."""

from __future__ import annotations

import signal
from typing import NoReturn

import typer

from dyce_export.cli import console
from dyce_export.cli.commands import bench, compile, export, inspect, lower, run, search, select_saver
from dyce_export.cli.console import Version
from dyce_export.cli.help import CONTEXT, Command, Group

_VERBS = {
    "export": export,
    "inspect": inspect,
    "run": run,
    "bench": bench,
    "search": search,
    "select-saver": select_saver,
    "lower": lower,
    "compile": compile,
}
app = typer.Typer(
    help="Make image classifiers early-exit, run them and measure them.",
    cls=Group,
    context_settings=CONTEXT,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
for name, module in _VERBS.items():
    app.command(name, help=module.HELP, cls=Command, context_settings=CONTEXT)(module.command)

export_app = typer.Typer(add_completion=True, pretty_exceptions_enable=False)
export_app.command(help=export.HELP, cls=Command, context_settings=CONTEXT, no_args_is_help=True)(export.command)


@app.callback()
def _options(version: Version = False) -> None:
    """Define the options that may precede the verb."""


def dyce() -> NoReturn:
    """Run ``dyce VERB ...``."""
    _main(app, "dyce")


def dyce_export() -> NoReturn:
    """Run ``dyce-export MODEL ...``."""
    _main(export_app, "dyce-export")


def _main(commands: typer.Typer, name: str) -> NoReturn:
    # Treat SIGTERM like an interrupt from the keyboard, so that temporary files are removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    raise SystemExit(console.run(commands, name))
