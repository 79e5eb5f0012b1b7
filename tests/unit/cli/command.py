"""The command, in a process of its own or in this one."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

SCRIPT = "from dyce_export.cli.main import dyce; dyce()"


def dyce(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own: ``run`` and ``bench`` make onnxruntime's process-wide pool."""
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, cwd=cwd, check=False
    )


@contextmanager
def logging_restored() -> Iterator[None]:
    """The command sends the log to its own stderr; later tests want it back."""
    loggers = [logging.getLogger(name) for name in ("dyce_export", "dyce_runtime", "dyce_calibration", "dyce_targets")]
    before = [(logger.handlers, logger.level) for logger in loggers]
    yield
    for logger, (handlers, level) in zip(loggers, before, strict=True):
        logger.handlers = handlers
        logger.setLevel(level)


def dyce_here(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command in this process, for all other verbs: importing torch takes longer than most of what is tested."""
    from dyce_export.cli import console
    from dyce_export.cli.main import app

    out, err = StringIO(), StringIO()
    with logging_restored(), redirect_stdout(out), redirect_stderr(err), chdir(cwd or Path.cwd()):
        code = console.run(app, "dyce", list(arguments))
    return subprocess.CompletedProcess(list(arguments), code, out.getvalue(), err.getvalue())
