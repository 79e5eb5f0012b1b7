"""How a machine was set while something was measured on it: its power mode, and the memory of a process."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

UNKNOWN = "unknown"
_QUERY_SECONDS = 5


def power_mode(root: Path = Path("/")) -> dict[str, str]:
    """What decides how fast the processor may run, each ``unknown`` where the machine does not tell.

    Args:
        root: the folder that holds ``sys``, ``var`` and ``etc``.

    Returns:
        ``cpu_governor``: of the frequency of the first core, such as ``performance``.
        ``power_mode``: of a Jetson, such as ``2 (15W)``.
    """
    governor = _read(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return {"cpu_governor": governor or UNKNOWN, "power_mode": _stored_mode(root) or _queried_mode() or UNKNOWN}


def resident_bytes(root: Path = Path("/proc")) -> int | None:
    """Bytes of memory that the process holds now; None where the system does not tell.

    Args:
        root: where procfs is mounted.
    """
    pages = _read(root / "self/statm").split()
    return int(pages[1]) * os.sysconf("SC_PAGE_SIZE") if len(pages) > 1 else None


def _stored_mode(root: Path) -> str:
    """The number of the mode, as nvpmodel stores it, and its name from the table of modes."""
    found = re.search(r"pmode:0*(\d+)", _read(root / "var/lib/nvpmodel/status"))
    if found is None:
        return ""
    number = found[1]
    name = re.search(rf"POWER_MODEL\s+ID={number}\s+NAME=(\S+)", _read(root / "etc/nvpmodel.conf"))
    return f"{number} ({name[1]})" if name else number


def _queried_mode() -> str:
    """What nvpmodel says, where it is installed and answers."""
    command = shutil.which("nvpmodel")
    if command is None:
        return ""
    import subprocess  # takes long to import, and is seldom needed

    try:
        done = subprocess.run([command, "-q"], capture_output=True, text=True, timeout=_QUERY_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = re.search(r"Power Mode:\s*(.+)", done.stdout)
    return found[1].strip() if found else ""


def _read(path: Path) -> str:
    """The text of a file, without space around it; empty if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
