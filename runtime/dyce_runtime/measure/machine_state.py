"""Read the state of the machine during a measurement: its power mode, and the memory of the process."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

UNKNOWN = "unknown"
_QUERY_SECONDS = 5


def power_mode(root: Path = Path("/")) -> dict[str, str]:
    """Return the settings that determine the speed of the processor, each ``unknown`` if it cannot be read.

    Args:
        root: the folder that holds ``sys``, ``var`` and ``etc``.

    Returns:
        ``cpu_governor``: the frequency governor of the first core, such as ``performance``.
        ``power_mode``: the power mode of a Jetson, such as ``2 (15W)``.
    """
    governor = _read(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return {"cpu_governor": governor or UNKNOWN, "power_mode": _stored_mode(root) or _queried_mode() or UNKNOWN}


def resident_bytes(root: Path = Path("/proc")) -> int | None:
    """Return the resident memory of this process in bytes; None if the system does not provide it.

    Args:
        root: where procfs is mounted.
    """
    pages = _read(root / "self/statm").split()
    return int(pages[1]) * os.sysconf("SC_PAGE_SIZE") if len(pages) > 1 else None


def _stored_mode(root: Path) -> str:
    """Return the number of the power mode, as nvpmodel stores it, with its name from nvpmodel's table; or empty."""
    found = re.search(r"pmode:0*(\d+)", _read(root / "var/lib/nvpmodel/status"))
    if found is None:
        return ""
    number = found[1]
    name = re.search(rf"POWER_MODEL\s+ID={number}\s+NAME=(\S+)", _read(root / "etc/nvpmodel.conf"))
    return f"{number} ({name[1]})" if name else number


def _queried_mode() -> str:
    """Return the power mode that the command ``nvpmodel`` prints; empty if it is not installed or fails."""
    command = shutil.which("nvpmodel")
    if command is None:
        return ""
    import subprocess  # imported late: slow, and seldom needed

    try:
        done = subprocess.run([command, "-q"], capture_output=True, text=True, timeout=_QUERY_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = re.search(r"Power Mode:\s*(.+)", done.stdout)
    return found[1].strip() if found else ""


def _read(path: Path) -> str:
    """Return the stripped text of a file; empty if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
