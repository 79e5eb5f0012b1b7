"""From the path of a bundle to a session: what the caller named, or what is fastest here."""

from __future__ import annotations

import os

from dyce_runtime.arguments import text
from dyce_runtime.bundle.reader import folder_of, open_bundle, undisturbed
from dyce_runtime.execution.contracts import Mode, Pool, TargetSpec
from dyce_runtime.execution.session import Session
from dyce_runtime.targets import registry
from dyce_runtime.targets.fastest import fastest
from dyce_runtime.targets.trial import Candidate, check_once

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
    check: bool = True,
) -> Session:
    """Open a bundle for running. The configuration is ``balanced`` if the bundle has one, otherwise ``full``.

    Args:
        path: the bundle's folder.
        target: ``onnxruntime``, for example. None takes the one that the environment names (``DYCE_TARGET``), or
            measures, once per machine and in processes of their own, which installed one is fastest on the bundle's
            own test vectors: see :func:`dyce_runtime.targets.fastest.fastest`.
        precision: one that the bundle holds, such as ``uint8``; ``auto`` takes the fastest of them, each with its own
            thresholds, so that answers may differ between machines. None takes the bundle's own.
        threads: per call; None lets the engine decide (one per physical core).
        pool: ``private`` leaves the application's own engine sessions alone; ``global`` is a little faster on small
            models and shares the engine's process-wide pool.
        mode: ``latency`` answers one caller soonest, ``throughput`` several.
        max_batch: samples that run at once; larger calls are cut into chunks. None takes what was measured, or guesses.
        max_memory: bytes that the pieces may take; spans are left out to stay within. None sets no limit.
        allow_untrained: let configurations with untrained heads run, for measurements of speed.
        check: compare all files with their hashes and, the first time on this machine, what the engine computes with
            the bundle's test vectors. False skips both; the session says so when it is printed.

    Raises:
        BundleError: see :func:`dyce_runtime.bundle.reader.open_bundle`; or there is no such precision.
        TargetError: no such target, it is not available here, the pieces need more memory than allowed, or what it
            computes is not what the test vectors say.
        RuntimeInputError: an argument is out of range.
    """
    for name, value in {"target": target, "precision": precision}.items():
        if value is not None:
            text(name, value)
    spec = TargetSpec(threads=threads, pool=pool, mode=mode)
    options = {"max_batch": max_batch, "max_memory": max_memory, "allow_untrained": allow_untrained}

    def opened() -> Session:
        """What was checked is what is opened."""
        bundle = open_bundle(path, check_hashes=check)
        if precision == AUTO:
            bundles = [bundle, *map(bundle.precision, bundle.manifest.precisions)]
        else:
            bundles = [bundle if precision in (None, bundle.manifest.precision) else bundle.precision(precision)]
        wanted = registry.named() if target is None else target
        names = registry.candidates() if wanted is None else [wanted]
        session = fastest(bundle, [Candidate(name, one) for one in bundles for name in names], spec, options)
        if not check:
            session.unchecked = True
            return session
        try:
            check_once(session)
        except BaseException:
            session.close()
            raise
        return session

    return undisturbed(folder_of(path), opened, Session.close)
