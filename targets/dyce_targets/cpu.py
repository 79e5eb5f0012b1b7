"""What holds for every engine on a CPU."""

from __future__ import annotations

import os

from dyce_runtime.contracts import TargetSpec


def gmacs_per_thread(spec: TargetSpec, macs: int) -> int:
    """A batch of about 2 GMACs per thread: of a small model many are worth a call, of a large one they leave caches.

    A guess, where nothing was measured.

    Args:
        macs: multiply-accumulates of one sample.
    """
    return min(max(1, 2_000_000_000 // max(macs, 1)), 64) * (spec.threads or os.cpu_count() or 1)
