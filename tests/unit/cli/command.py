"""The command in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = "from dyce_export.cli.main import dyce; dyce()"


def dyce(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own: ``run`` and ``bench`` make onnxruntime's process-wide pool."""
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, cwd=cwd, check=False
    )
