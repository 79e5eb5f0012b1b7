"""Load a bundle from a path into a session, on the target that the caller names or the fastest one."""

from __future__ import annotations

import os

from dyce_runtime.arguments import text
from dyce_runtime.bundle.reader import folder_of, open_bundle, undisturbed
from dyce_runtime.execution.contracts import Mode, Pool, TargetSpec
from dyce_runtime.execution.session import Session
from dyce_runtime.targets import registry
from dyce_runtime.targets.fastest import fastest
from dyce_runtime.targets.trial import Candidate, check_once

# The value of ``precision`` that chooses the fastest one.
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
        target: name of a target, such as ``onnxruntime``. None takes the one that the environment names
            (``DYCE_TARGET``), or measures, once per machine and in separate processes, which installed target is the
            fastest on the bundle's test vectors: see :func:`dyce_runtime.targets.fastest.fastest`.
        precision: a precision that the bundle holds, such as ``uint8``; ``auto`` takes the fastest of them, each with
            its own thresholds, so that answers may differ between machines. None takes the bundle's own.
        threads: threads per call; None lets the engine decide (one per physical core).
        pool: ``private`` does not affect the application's own engine sessions; ``global`` is slightly faster for small
            models and shares the engine's process-wide thread pool.
        mode: ``latency`` minimises the duration of a single call, ``throughput`` serves several callers at once.
        max_batch: samples that run at once; larger calls are cut into chunks. None takes the measured value, or an
            estimate.
        max_memory: bytes that the pieces may take; spans are left out to stay below it. None sets no limit.
        allow_untrained: whether configurations with untrained heads may run, to measure speed.
        check: whether to check the hashes of all files and, the first time on this machine, compare the engine with
            the bundle's test vectors. If False, the ``repr`` of the session says that it is unchecked.

    Returns:
        a session, which the caller should close; it is a context manager.

    Raises:
        BundleError: see :func:`dyce_runtime.bundle.reader.open_bundle`; or the bundle does not have the precision.
        TargetError: the target does not exist or is not available here, the pieces need more memory than allowed, or
            the engine does not reproduce the test vectors.
        RuntimeInputError: an argument is out of range.
    """
    for name, value in {"target": target, "precision": precision}.items():
        if value is not None:
            text(name, value)
    spec = TargetSpec(threads=threads, pool=pool, mode=mode)
    options = {"max_batch": max_batch, "max_memory": max_memory, "allow_untrained": allow_untrained}

    def opened() -> Session:
        """Open and check the session. Repeated by :func:`undisturbed` if the bundle is replaced meanwhile."""
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
