"""Entry points: ``dyce`` and ``dyce-export`` (the same as ``dyce export``)."""

from __future__ import annotations

import typer

from dyce_export.cli import bench, console, export, inspect, run

app = typer.Typer(
    help="Early-exit image classifiers: export, run, measure.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
app.command("export", help=export.HELP)(export.command)
app.command("run", help=run.HELP)(run.command)
app.command("bench", help=bench.HELP)(bench.command)
app.command("inspect", help=inspect.HELP)(inspect.command)

export_app = typer.Typer(add_completion=True, pretty_exceptions_enable=False)
export_app.command(help=export.HELP)(export.command)


def dyce() -> None:
    """``dyce VERB …``."""
    raise SystemExit(console.run(app, "dyce"))


def dyce_export() -> None:
    """``dyce-export MODEL …``."""
    raise SystemExit(console.run(export_app, "dyce-export"))
