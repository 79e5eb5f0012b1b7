"""Ask a question in a new process, whose memory and engines are its own and whose crash takes nothing down."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from typing import Any

from dyce_runtime.errors import TargetError

# Engines for a GPU may have to be built first.
_LONGEST = 1800
# Python in isolated mode, so that nothing in the working directory is imported, with the modules of this process.
_START = (
    "import sys; module, sys.path[:] = sys.argv[1], sys.argv[2:]; "
    "from dyce_runtime.targets.subprocess_call import main; main(module)"
)


def ask(module: str, question: dict[str, Any]) -> dict[str, Any] | None:
    """What ``answer(question)`` of a module returns in a new process; None where no process can be started.

    Args:
        module: its name; it has a function ``answer`` from and to what JSON can hold.

    Raises:
        TargetError: the process ended without an answer, or was not ready in time.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", _START, module, *sys.path],
            input=json.dumps(question),
            capture_output=True,
            text=True,
            timeout=_LONGEST,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise TargetError(f"it was not ready within {_LONGEST} s") from error
    except (OSError, ValueError):
        return None
    lines = done.stdout.splitlines()
    if done.returncode != 0 or not lines:
        raise TargetError(f"it ended the process that tried it ({done.returncode}): {_last(done.stderr)}")
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def main(module: str) -> None:
    """What the new process does: one question on its input, one answer as the last line of its output."""
    found = importlib.import_module(module).answer(json.load(sys.stdin))
    print("\n" + json.dumps(found), flush=True)


def _last(text: str) -> str:
    return next(reversed([line for line in text.splitlines() if line.strip()]), "it said nothing")[:200]
