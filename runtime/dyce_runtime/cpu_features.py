"""Detect the processor's instructions for lower precisions, as Linux lists them, and advise on their use."""

from __future__ import annotations

import platform
from pathlib import Path

# The name used in data sheets, and the flags of /proc/cpuinfo that stand for it.
_NAMES = {
    "VNNI": ("avx512_vnni", "avx_vnni", "asimddp"),
    "AMX": ("amx_int8", "amx_tile"),
    "bf16": ("avx512_bf16", "amx_bf16", "bf16"),
    "i8mm": ("i8mm",),
}


def cpu_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[str, ...] | None:
    """Return which of ``VNNI`` (on Arm: the dot product), ``AMX``, ``bf16`` and ``i8mm`` all cores support.

    Returns:
        the names, in that order; None if the system does not list the flags of the processor.
    """
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    flags = [set(line.split(":", 1)[1].split()) for line in lines if line.lower().startswith(("flags", "features"))]
    if not flags:
        return None
    common = set.intersection(*flags)
    return tuple(name for name, words in _NAMES.items() if common & set(words))


def byte_sums_saturate() -> bool:
    """Return whether 8-bit dot products may saturate here: x86 without VNNI adds pairs of products in 16 bits.

    An x86 processor whose instructions the system does not list counts as one without VNNI.
    """
    return platform.machine().lower() in ("x86_64", "amd64") and "VNNI" not in (cpu_features() or ())


def advice(features: tuple[str, ...] | None) -> str:
    """Return one line of advice on which lower precisions may be faster with these features (None: unknown)."""
    if features is None:
        return "The system does not list the processor's instructions; measure lower precisions before using them."
    integers = {"VNNI", "AMX", "i8mm"} & set(features)
    parts = [
        "8-bit integers can be faster than float32 here"
        if integers
        else "8-bit integers are seldom faster than float32 here",
        "bfloat16 can be faster, in OpenVINO"
        if "bf16" in features
        else "bfloat16 is computed in float32 and gains no time",
    ]
    return f"{'; '.join(parts)}. `dyce bench` tells."
