"""Check an engine against the test vectors of a bundle, and measure its latency, in a process of its own.

The process that runs the bundle then imports only the engine that was chosen, and survives an engine that crashes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any, NamedTuple

import msgspec
import numpy as np

from dyce_runtime.atomic_write import write_atomically
from dyce_runtime.bundle.cache import cache_of
from dyce_runtime.bundle.manifest import Manifest
from dyce_runtime.bundle.reader import TEST_VECTORS, Bundle, open_bundle
from dyce_runtime.bundle.test_vectors import Vectors, answered, read_vectors, relative_error, span_errors
from dyce_runtime.errors import BundleError, PieceError, TargetError
from dyce_runtime.execution.contracts import TargetSpec
from dyce_runtime.execution.session import Session
from dyce_runtime.inputs.images import rows_of
from dyce_runtime.json_files import read_json
from dyce_runtime.targets.subprocess_call import ask

# Largest error of the logits of another engine in float32; see ``bundle.test_vectors.relative_error``.
TOLERANCE = 1e-3
# Largest fraction of samples that may take another exit than the records of a lower precision say, if that was
# measured for the target.
MOST_MISMATCHES = 0.01
# Confidences closer than this to a threshold may fall on either side of it.
_NEAR = 1e-4
# Largest error of a head's scores, in float32 and in a lower precision. It detects a wrong head or piece, whose scores
# differ by more.
_APART, _APART_ROUNDED = 0.02, 0.25
_CHECKED = "checked.json"
_SECONDS = 0.3
# Seconds after which the spinning threads of a pool have released the cores.
_PAUSE = 0.05


class Candidate(NamedTuple):
    """A target together with the bundle in one precision."""

    target: str
    bundle: Bundle

    @property
    def name(self) -> str:
        """The target and the precision, as a choice is stored."""
        return f"{self.target} {self.bundle.manifest.precision}"


def milliseconds_apart(candidate: Candidate, spec: TargetSpec, options: dict[str, Any]) -> float | None:
    """Measure the median duration of a call with one sample in a new process.

    Args:
        candidate: the target and the bundle.
        spec: how the pieces are opened.
        options: keyword arguments of the session.

    Returns:
        milliseconds; None if no process can be started.

    Raises:
        TargetError: the engine does not run the bundle correctly; the message says why.
    """
    question = {
        "path": str(candidate.bundle.path),
        "target": candidate.target,
        "spec": asdict(spec),
        "options": options,
    }
    found = ask(__name__, question)
    if found is None:
        return None
    if "refused" in found:
        raise TargetError(found["refused"])
    return float(found["ms"])


def milliseconds_here(opened: Callable[[], Session]) -> float:
    """Measure the same in this process, in milliseconds. The session is closed afterwards.

    Args:
        opened: opens the session.

    Raises:
        TargetError, BundleError, PieceError: the engine does not run the bundle correctly.
    """
    with opened() as session:
        check(session)
        found = _milliseconds(session)
    time.sleep(_PAUSE)
    return found


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """Answer in the new process: ``ms``, or the reason why the candidate was ``refused``."""
    bundle, spec = open_bundle(question["path"], check_hashes=False), TargetSpec(**question["spec"])
    try:
        return {"ms": milliseconds_here(lambda: Session(bundle, question["target"], spec, **question["options"]))}
    except (BundleError, PieceError, TargetError) as error:
        return {"refused": error.message}


def check(session: Session) -> None:
    """Compare a session with the test vectors of its bundle.

    Raises:
        TargetError: logits, exits taken, scores or spans differ by too much.
        BundleError: the test vectors are missing or damaged.
        PieceError: a piece failed.
    """
    manifest = session.manifest
    if (
        manifest.lowering is not None
        and manifest.lowering.exit_mismatch_rate.get(session.target.name, 0.0) > MOST_MISMATCHES
    ):
        share = manifest.lowering.exit_mismatch_rate[session.target.name]
        raise TargetError(f"{share:.1%} of the samples take another exit there than recorded")
    expected = read_vectors(session.bundle)
    found = answered(expected, session)
    error = relative_error(expected.logits, found.logits, expected.logits)
    allowed, apart = TOLERANCE, _APART
    if manifest.verification is not None:
        allowed = max(allowed, manifest.verification.tolerance)
    if manifest.lowering is not None:  # engines round intermediate results in ways of their own
        allowed, apart = max(allowed, 2 * manifest.lowering.logits_error), _APART_ROUNDED
    misrouted = _count_misrouted(found, expected, manifest) if manifest.lowering is None else 0
    if not error <= allowed or misrouted:
        raise TargetError(
            f"its logits are {error:.1e} from those of the bundle's test vectors, and {misrouted} of "
            f"{len(expected.logits)} samples take another exit; expected at most {allowed:.0e} and none"
        )
    for (exit, head), scores in expected.scores.items():
        if not (distance := float(np.abs(found.scores[exit, head] - scores).max())) <= apart:
            raise TargetError(
                f"head {head} at exit {exit} is {distance:.2g} from the scores of the bundle's test vectors; expected "
                f"at most {apart}"
            )
    for span, error in span_errors(expected, session).items():
        if not error <= allowed:
            raise TargetError(f"span {span} is {error:.1e} from its segments; expected at most {allowed:.0e}")


def check_once(session: Session) -> None:
    """Check a session like :func:`check`, once per machine, bundle and engine. Do nothing without test vectors.

    Raises:
        TargetError, BundleError, PieceError: see :func:`check`.
    """
    bundle, target = session.bundle, session.target
    if not bundle.file(TEST_VECTORS).is_file():
        return
    engine = f"{target.name} {target.version()}, {len(session.pieces)} pieces"
    file = cache_of(bundle) / _CHECKED
    known: list[str] = []
    with suppress(OSError, msgspec.DecodeError):
        known = read_json(file, list[str])
    if engine in known:
        return
    try:
        check(session)
    except TargetError as error:
        raise TargetError(
            f"{target.name} does not compute what {bundle.path} says: {error.message}",
            hint="Copy the bundle again, or export again; load(..., check=False) runs it unchecked.",
        ) from error
    with suppress(OSError):  # if it cannot be stored, the next load checks again
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, msgspec.json.encode([*known, engine]))


def _count_misrouted(found: Vectors, expected: Vectors, manifest: Manifest) -> int:
    """Count the samples on the other side of a probe threshold than expected, unless they are within 1e-4 of it."""
    scores = expected.first(manifest)
    sides = [one > expected.probe for one in (found.first(manifest), scores)]
    far = np.abs(scores - expected.probe) > _NEAR
    return int(((sides[0] != sides[1]) & far).any(axis=1).sum())


def _milliseconds(session: Session) -> float:
    """Return the median over rounds of the mean duration of a call with one sample of the test vectors."""
    vectors = read_vectors(session.bundle)
    samples = [rows_of(vectors.inputs, slice(row, row + 1)) for row in range(len(vectors.logits))]
    rounds: list[float] = []
    end = 0.0
    while not rounds or time.perf_counter() < end:
        start = time.perf_counter()
        for sample in samples:
            session(sample)
        rounds.append(time.perf_counter() - start)
        end = end or time.perf_counter() + _SECONDS  # the first round is a warm-up
    return 1e3 * float(np.median(rounds[1:] or rounds)) / len(samples)
