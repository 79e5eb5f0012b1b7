"""Profiles of devices: the recommended target of each, and how to install it.

Each ``NAME.json`` in this folder is a :class:`Profile`. Only the CPUs were tested on hardware: see docs/targets.md.
"""

from __future__ import annotations

import platform
from pathlib import Path

import msgspec

_TREE = Path("/proc/device-tree/model")


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A kind of device.

    Attributes:
        title: name for the user.
        target: the recommended target.
        requires: required versions and other prerequisites.
        install: commands that install the target.
        precisions: precisions that are useful in addition to float32.
        machine: architecture, as ``platform.machine()`` returns it.
        device_tree: parts of the name that the firmware gives the board; empty if it is recognised otherwise.
        capabilities: compute capabilities of its GPU, such as ``sm86``; empty for a CPU.
        max_batch: the most samples that an engine is built for.
        workspace_mib: scratch memory that a builder may use, in MiB; None sets no limit.
        power: commands that fix the clock frequencies, to be run before measurements.
        note: further information for the user.
    """

    title: str
    target: str
    requires: str
    install: tuple[str, ...]
    precisions: tuple[str, ...]
    machine: str
    device_tree: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    max_batch: int = 8
    workspace_mib: int | None = None
    power: tuple[str, ...] = ()
    note: str = ""


def profiles() -> dict[str, Profile]:
    """Return name to profile, for all profiles."""
    files = sorted(Path(__file__).parent.glob("*.json"))
    return {file.stem: msgspec.json.decode(file.read_bytes(), type=Profile) for file in files}


def detect(machine: str, board: str, capability: str | None) -> str | None:
    """Return the name of a machine's profile: by the name of its board, or else its GPU, or else its processor.

    Args:
        machine: architecture, see :class:`Profile`.
        board: name of the board according to the firmware; may be empty.
        capability: compute capability of its GPU; None without a usable GPU.

    Returns:
        None if no profile fits.
    """
    known = {name: profile for name, profile in profiles().items() if profile.machine == machine}
    for name, profile in known.items():
        if any(part in board for part in profile.device_tree):
            return name
    for name, profile in known.items():
        if capability in profile.capabilities and not profile.device_tree:
            return name
    return next((n for n, p in known.items() if not (p.device_tree or p.capabilities)), None)


def here() -> str | None:
    """Return the name of this machine's profile; None if no profile fits."""
    from dyce_targets.nvidia import cuda

    capability = None if cuda.missing() else cuda.compute_capability()
    return detect(platform.machine(), board(), capability)


def board() -> str:
    """Return the firmware's name of the board, such as ``NVIDIA Jetson Orin Nano Developer Kit``; empty on most PCs."""
    try:
        return _TREE.read_text(encoding="utf-8", errors="replace").rstrip("\0")
    except OSError:
        return ""
