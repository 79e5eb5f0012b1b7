"""Devices, as data: one file for each, with what it runs bundles with and how that is had.

``NAME.json`` beside this file is a :class:`Profile`. None of the devices but the CPUs was at hand: see docs/targets.md.
"""

from __future__ import annotations

import platform
from pathlib import Path

import msgspec

_TREE = Path("/proc/device-tree/model")


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A kind of device.

    Attributes:
        title: for people.
        target: what runs bundles there best.
        requires: versions, and what else has to be there.
        install: commands.
        precisions: worth having beside float32.
        machine: as ``platform.machine()`` names the processor.
        device_tree: parts of the name that the firmware gives a board.
        capabilities: of its GPU, as in ``sm86``; none for a CPU.
        max_batch: samples that an engine is built for, at most.
        workspace_mib: scratch memory that a builder may use, in MiB; None sets no limit.
        power: commands that make clocks stay where they are, before something is measured.
        note: what else a user should know.
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
    """All, by name."""
    files = sorted(Path(__file__).parent.glob("*.json"))
    return {file.stem: msgspec.json.decode(file.read_bytes(), type=Profile) for file in files}


def detect(machine: str, board: str, capability: str | None) -> str | None:
    """The profile of a machine: by the name of its board, else by its GPU, else by its processor.

    Args:
        machine: see :class:`Profile`.
        board: what the firmware calls it; empty where it says nothing.
        capability: of its GPU, if it has one that can be used.
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
    """The profile of this machine."""
    from dyce_targets.nvidia import cuda

    capability = None if cuda.missing() else cuda.compute_capability()
    return detect(platform.machine(), board(), capability)


def board() -> str:
    """What the firmware calls this machine, such as ``NVIDIA Jetson Orin Nano Developer Kit``; empty on most PCs."""
    try:
        return _TREE.read_text(encoding="utf-8", errors="replace").rstrip("\0")
    except OSError:
        return ""
