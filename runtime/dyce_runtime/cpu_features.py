"""What the processor has for lower precisions, as Linux lists it, and what follows from that."""

from __future__ import annotations

import platform
from pathlib import Path

# Flags of /proc/cpuinfo by what they are called in data sheets.
_NAMES = {
    "VNNI": ("avx512_vnni", "avx_vnni", "asimddp"),
    "AMX": ("amx_int8", "amx_tile"),
    "bf16": ("avx512_bf16", "amx_bf16", "bf16"),
    "i8mm": ("i8mm",),
}


def cpu_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[str, ...] | None:
    """Of ``VNNI`` (on Arm: the dot product), ``AMX``, ``bf16`` and ``i8mm`` those that all cores have.

    Returns:
        None where the system does not tell.
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
    """Whether engines may get sums of products of bytes wrong here: x86 without VNNI adds pairs of them in 16 bits.

    True, too, for an x86 processor whose instructions the system does not list.
    """
    return platform.machine().lower() in ("x86_64", "amd64") and "VNNI" not in (cpu_features() or ())


def advice(features: tuple[str, ...] | None) -> str:
    """What the features mean for a bundle, in a sentence."""
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
