"""Call a function in a new process, which has its own memory and engines and may crash without harm to this one."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from typing import Any

from dyce_runtime.errors import TargetError

# Seconds until the process is given up: engines for a GPU may have to be built first.
_LONGEST = 1800
# The program of the new process. Python runs it in isolated mode, so that nothing is imported from the working
# directory, and with the module search path of this process.
_START = (
    "import sys; module, sys.path[:] = sys.argv[1], sys.argv[2:]; "
    "from dyce_runtime.targets.subprocess_call import main; main(module)"
)


def ask(module: str, question: dict[str, Any]) -> dict[str, Any] | None:
    """Return the result of ``answer(question)`` of a module in a new process; None if no process can be started.

    Args:
        module: name of a module with a function ``answer``, whose argument and result can be written as JSON.
        question: the argument.

    Raises:
        TargetError: the process ended without an answer, or did not answer within 30 minutes.
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
    """Run the new process: read a question from stdin, and write the answer as the last line of stdout."""
    found = importlib.import_module(module).answer(json.load(sys.stdin))
    print("\n" + json.dumps(found), flush=True)


def _last(text: str) -> str:
    return next(reversed([line for line in text.splitlines() if line.strip()]), "it said nothing")[:200]
