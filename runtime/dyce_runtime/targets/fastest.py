"""Choose the fastest target and precision for a bundle on this machine, and store the choice in the user's cache."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from dyce_runtime.atomic_write import write_atomically
from dyce_runtime.bundle.cache import cache_of
from dyce_runtime.bundle.reader import TEST_VECTORS, Bundle
from dyce_runtime.errors import BundleError, PieceError, TargetError
from dyce_runtime.execution.contracts import TargetSpec
from dyce_runtime.execution.session import Session
from dyce_runtime.json_files import read_json
from dyce_runtime.targets import registry
from dyce_runtime.targets.trial import Candidate, milliseconds_apart, milliseconds_here

log = logging.getLogger("dyce_runtime")

FILE = "fastest.json"


def fastest(bundle: Bundle, candidates: Sequence[Candidate], spec: TargetSpec, options: dict[str, Any]) -> Session:
    """Open a session on the candidate with the lowest latency for one sample that reproduces the test vectors.

    Nothing is measured if there is only one candidate, if this machine has measured the same candidates before, or if
    the bundle has no test vectors: then the first one that opens is used.

    Args:
        bundle: the bundle in its own precision.
        candidates: targets and precisions to choose from.
        spec: how the pieces are opened.
        options: keyword arguments of the session.

    Returns:
        an open session, which the caller has to close.

    Raises:
        TargetError: no candidate is available, or none passes; the message says why for each.
        BundleError: a piece of the only candidate does not load.
    """

    def opened(candidate: Candidate) -> Session:
        return Session(candidate.bundle, candidate.target, spec, **options)

    if len(candidates) == 1:
        return opened(candidates[0])
    if not candidates:
        registry.find()  # raises TargetError, which says why each target is unavailable
    if not bundle.file(TEST_VECTORS).is_file():
        own = [candidate for candidate in candidates if candidate.bundle is bundle] or candidates
        return _first_that_opens(own, opened, [])
    known = _read(bundle)
    key = _key(candidates, spec)
    remembered = next((one for one in candidates if one.name == known.get(key)), None)
    if remembered is not None:
        with suppress(TargetError):  # it may have stopped working since
            return opened(remembered)
    ranked, refused = _ranked(candidates, spec, options, opened)
    session = _first_that_opens(ranked, opened, refused)
    _write(bundle, {**known, key: Candidate(session.target.name, session.bundle).name})
    return session


def _ranked(
    candidates: Sequence[Candidate],
    spec: TargetSpec,
    options: dict[str, Any],
    opened: Callable[[Candidate], Session],
) -> tuple[list[Candidate], list[str]]:
    """Return the candidates that reproduce the test vectors, the fastest first, and why the others do not."""
    times: dict[Candidate, float] = {}
    refused = []
    for candidate in candidates:
        try:
            # A target that only this process has registered cannot be opened in another one.
            found = milliseconds_apart(candidate, spec, options) if registry.is_installed(candidate.target) else None
            times[candidate] = milliseconds_here(lambda one=candidate: opened(one)) if found is None else found  # type: ignore[misc]
        except (BundleError, PieceError, TargetError) as error:
            refused.append(f"{candidate.name}: {error.message}")
    ranked = sorted(times, key=times.__getitem__)
    if ranked:
        figures = ", ".join(f"{candidate.name} {ms:.2f} ms" for candidate, ms in times.items())
        log.info("fastest here: %s (%s); remembered for this machine", ranked[0].name, figures)
    for line in refused:
        log.info("left out: %s", line)
    return ranked, refused


def _first_that_opens(
    candidates: Sequence[Candidate], opened: Callable[[Candidate], Session], refused: list[str]
) -> Session:
    for candidate in candidates:
        try:
            return opened(candidate)
        except TargetError as error:
            refused.append(f"{candidate.name}: {error.message}")
    raise TargetError(
        f"no target runs this bundle as it should; {'; '.join(refused)}",
        hint="`dyce inspect` shows what is installed.",
    )


def _key(candidates: Sequence[Candidate], spec: TargetSpec) -> str:
    """Return a key for a stored choice: the machine, the options, and the candidates with their engines' versions."""
    versions = {name: registry.get(name).version() for name in dict.fromkeys(one.target for one in candidates)}
    chosen_from = ", ".join(f"{one.name} ({versions[one.target]})" for one in candidates)
    return f"{platform.node()}, threads {spec.threads}, {spec.pool}, {spec.mode}: {chosen_from}"


def _read(bundle: Bundle) -> dict[str, str]:
    """Read the stored choices; nothing if they cannot be read."""
    with suppress(OSError, msgspec.DecodeError):
        return read_json(cache_of(bundle) / FILE, dict[str, str])
    return {}


def _write(bundle: Bundle, known: dict[str, str]) -> None:
    """Store the choices. If the cache cannot be written, the next load measures again."""
    try:
        cache_of(bundle).mkdir(parents=True, exist_ok=True)
        write_atomically(cache_of(bundle) / FILE, msgspec.json.format(msgspec.json.encode(known)))
    except OSError as error:
        log.warning("the choice of the fastest target cannot be stored: %s", error)
