"""The fastest way to run a bundle on this machine: measured once, then remembered in the user's cache."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

import msgspec
import numpy as np

from dyce_runtime import targets
from dyce_runtime.artefacts import cache_of
from dyce_runtime.atomic_write import write_atomically
from dyce_runtime.bundle import TEST_VECTORS, Bundle
from dyce_runtime.contracts import TargetSpec
from dyce_runtime.errors import BundleError, PieceError, TargetError
from dyce_runtime.images import rows_of
from dyce_runtime.json_files import read_json
from dyce_runtime.session import Session
from dyce_runtime.vectors import Vectors, answered, read_vectors, relative_error

log = logging.getLogger("dyce_runtime")

FILE = "fastest.json"
# Largest error of logits that another engine may make in float32, relative to what depends on the input.
TOLERANCE = 1e-3
# Share of samples that may leave elsewhere than the records of a lower precision say, where that was measured.
MOST_ELSEWHERE = 0.01
# Confidences nearer to a threshold may fall on either side of it.
_NEAR = 1e-4
_SECONDS = 0.3
# A pool that spins leaves the cores alone after that.
_PAUSE = 0.05


class Candidate(NamedTuple):
    """A target, and the bundle in one precision."""

    target: str
    bundle: Bundle

    @property
    def name(self) -> str:
        """As it is stored."""
        return f"{self.target} {self.bundle.manifest.precision}"


def fastest(
    bundle: Bundle, candidates: Sequence[Candidate], spec: TargetSpec, opened: Callable[[Candidate], Session]
) -> Session:
    """Open the candidate that answers a sample soonest of those that compute what the bundle's test vectors say.

    Nothing is measured where there is one candidate; or no test vectors, then the first available target runs it.

    Raises:
        TargetError: none is available, or none passes; says why for each.
    """
    if len(candidates) == 1:
        return opened(candidates[0])
    if not candidates or not bundle.file(TEST_VECTORS).is_file():
        return opened(Candidate(targets.find().name, bundle))
    known = _read(bundle)
    key = _key(candidates, spec)
    chosen = next((one for one in candidates if one.name == known.get(key)), None)
    if chosen is None:
        chosen = _measure(candidates, opened)
        _write(bundle, {**known, key: chosen.name})
    return opened(chosen)


def _measure(candidates: Sequence[Candidate], opened: Callable[[Candidate], Session]) -> Candidate:
    times: dict[Candidate, float] = {}
    refused = []
    for candidate in candidates:
        try:
            with opened(candidate) as session:
                _check(session)
                times[candidate] = _milliseconds(session)
        except (BundleError, PieceError, TargetError) as error:
            refused.append(f"{candidate.name}: {error.message}")
        time.sleep(_PAUSE)
    if not times:
        raise TargetError(
            f"no target runs this bundle as it should; {'; '.join(refused)}",
            hint="`dyce inspect` shows what is installed; an explicit target is not checked.",
        )
    chosen = min(times, key=times.__getitem__)
    figures = ", ".join(f"{candidate.name} {ms:.2f} ms" for candidate, ms in times.items())
    log.info("fastest here: %s (%s); remembered for this machine", chosen.name, figures)
    for line in refused:
        log.info("left out: %s", line)
    return chosen


def _check(session: Session) -> None:
    """Compare with the test vectors of its precision. Raises TargetError."""
    manifest = session.manifest
    if manifest.lowering is not None and manifest.lowering.elsewhere.get(session.target.name, 0.0) > MOST_ELSEWHERE:
        share = manifest.lowering.elsewhere[session.target.name]
        raise TargetError(f"{share:.1%} of the samples leave elsewhere there than recorded")
    expected = read_vectors(session.bundle)
    found = answered(expected, session)
    error = relative_error(expected.logits, found.logits, expected.logits)
    allowed = TOLERANCE
    if manifest.lowering is not None:  # engines round on the way as that precision does
        allowed = max(allowed, 2 * manifest.lowering.logits_error)
    elsewhere = _elsewhere(found, expected) if manifest.lowering is None else 0
    if not error <= allowed or elsewhere:
        raise TargetError(
            f"its logits are {error:.1e} from those of the bundle's test vectors, and {elsewhere} of "
            f"{len(expected.logits)} leave elsewhere; expected at most {allowed:.0e} and none"
        )


def _elsewhere(found: Vectors, expected: Vectors) -> int:
    """Samples on another side of a probe threshold, unless they are next to it."""
    sides = [vectors.confidences > expected.probe for vectors in (found, expected)]
    far = np.abs(expected.confidences - expected.probe) > _NEAR
    return int(((sides[0] != sides[1]) & far).any(axis=1).sum())


def _milliseconds(session: Session) -> float:
    """Median of a call with one sample, over the test vectors and all rounds."""
    vectors = read_vectors(session.bundle)
    samples = [rows_of(vectors.inputs, slice(row, row + 1)) for row in range(len(vectors.logits))]
    rounds: list[float] = []
    end = 0.0
    while not rounds or time.perf_counter() < end:
        start = time.perf_counter()
        for sample in samples:
            session(sample)
        rounds.append(time.perf_counter() - start)
        end = end or time.perf_counter() + _SECONDS  # the first round warms up
    return 1e3 * float(np.median(rounds[1:] or rounds)) / len(samples)


def _key(candidates: Sequence[Candidate], spec: TargetSpec) -> str:
    """What a choice depends on: the machine, how it will run, and what there is to choose from."""
    versions = {name: targets.get(name).version() for name in dict.fromkeys(one.target for one in candidates)}
    chosen_from = ", ".join(f"{one.name} ({versions[one.target]})" for one in candidates)
    return f"{platform.node()}, threads {spec.threads}, {spec.pool}, {spec.mode}: {chosen_from}"


def _read(bundle: Bundle) -> dict[str, str]:
    """What was chosen before; nothing if that cannot be read."""
    with suppress(OSError, msgspec.DecodeError):
        return read_json(cache_of(bundle) / FILE, dict[str, str])
    return {}


def _write(bundle: Bundle, known: dict[str, str]) -> None:
    """Remember. If the cache cannot be written, the next load measures again."""
    try:
        cache_of(bundle).mkdir(parents=True, exist_ok=True)
        write_atomically(cache_of(bundle) / FILE, msgspec.json.format(msgspec.json.encode(known)))
    except OSError as error:
        log.warning("what is fastest here cannot be remembered: %s", error)
