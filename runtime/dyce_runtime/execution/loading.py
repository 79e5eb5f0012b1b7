"""From the path of a bundle to a session: what the caller named, or what is fastest here."""

from __future__ import annotations

import os

from dyce_runtime.arguments import text
from dyce_runtime.bundle.reader import open_bundle
from dyce_runtime.execution import targets
from dyce_runtime.execution.contracts import Mode, Pool, TargetSpec
from dyce_runtime.execution.fastest import fastest
from dyce_runtime.execution.session import Session
from dyce_runtime.execution.trial import Candidate

# Stands for the fastest precision.
AUTO = "auto"


def load(
    path: str | os.PathLike[str],
    target: str | None = None,
    *,
    precision: str | None = None,
    threads: int | None = None,
    pool: Pool = "private",
    mode: Mode = "latency",
    max_batch: int | None = None,
    max_memory: float | None = None,
    allow_untrained: bool = False,
) -> Session:
    """Open a bundle for running. The configuration is ``balanced`` if the bundle has one, otherwise ``full``.

    Args:
        path: the bundle's folder.
        target: ``onnxruntime``, for example. None takes the one that the environment names (``DYCE_TARGET``), or
            measures, once per machine and in processes of their own, which installed one is fastest on the bundle's
            own test vectors: see :func:`dyce_runtime.execution.fastest.fastest`.
        precision: one that the bundle holds, such as ``uint8``; ``auto`` takes the fastest of them, each with its own
            thresholds, so that answers may differ between machines. None takes the bundle's own.
        threads: per call; None lets the engine decide (one per physical core).
        pool: ``private`` leaves the application's own engine sessions alone; ``global`` is a little faster on small
            models and shares the engine's process-wide pool.
        mode: ``latency`` answers one caller soonest, ``throughput`` several.
        max_batch: samples that run at once; larger calls are cut into chunks. None takes what was measured, or guesses.
        max_memory: bytes that the pieces may take; spans are left out to stay within. None sets no limit.
        allow_untrained: let configurations with untrained heads run, for measurements of speed.

    Raises:
        BundleError: see :func:`dyce_runtime.bundle.reader.open_bundle`; or there is no such precision.
        TargetError: no such target, it is not available here, or the pieces need more memory than allowed.
        RuntimeInputError: an argument is out of range.
    """
    for name, value in {"target": target, "precision": precision}.items():
        if value is not None:
            text(name, value)
    bundle = open_bundle(path)
    spec = TargetSpec(threads=threads, pool=pool, mode=mode)
    options = {"max_batch": max_batch, "max_memory": max_memory, "allow_untrained": allow_untrained}
    if target is None:
        target = targets.named()
    if precision == AUTO:
        bundles = [bundle, *map(bundle.precision, bundle.manifest.precisions)]
    else:
        bundles = [bundle if precision in (None, bundle.manifest.precision) else bundle.precision(precision)]
    names = [target] if target is not None else targets.candidates()
    return fastest(bundle, [Candidate(name, one) for one in bundles for name in names], spec, options)
