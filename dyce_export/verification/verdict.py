"""Judging measured errors: passed, failed or inconclusive, with the reason and with advice for the user."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dyce_export.verification.rounding import explained_by_rounding
from dyce_runtime.bundle.manifest import Verification
from dyce_runtime.bundle.test_vectors import spread
from dyce_runtime.errors import VerificationError

Floats = NDArray[np.float32]

# Largest share of samples that may be too close to a threshold; all others have to take the same exits as in torch.
_MOST_EXEMPT = 0.5
# Outputs that vary with the input by less than this many tolerances cannot be compared.
_LEAST_SIGNAL = 10


def control_of(logits: Floats) -> float:
    """Return the largest difference between the logits of neighbouring inputs, relative to the scale of all logits."""
    known = np.where(np.isneginf(logits), np.float32(0), logits)
    return float(np.abs(known[1:] - known[:-1]).max() / max(np.abs(known).max(), np.finfo(np.float32).tiny))


def inconclusive(
    expected: Mapping[str, Sequence[Floats]],
    errors: Mapping[str, float],
    tolerance: float,
    exempt: int,
) -> str:
    """Explain why the comparison can show nothing; return an empty string if it can show something.

    Args:
        expected: torch's outputs, (N, ...) each, under the names of ``errors``; ``logits`` are those of all samples.
        errors: relative error of each output.
        tolerance: largest relative error allowed.
        exempt: number of samples that are too close to a threshold to be compared.
    """
    [logits] = expected["logits"]
    for name, values in _each(expected):
        strange = ~np.isfinite(values) & ~(np.isneginf(values) if values is logits else np.zeros((), np.bool_))
        if strange.any():
            rows = int(strange.reshape(len(values), -1).any(axis=1).sum())
            return f"the model itself computes NaN or infinity for {rows} of {len(values)} pictures, at {name}"
    if not control_of(logits) >= _LEAST_SIGNAL * tolerance:
        return (
            f"the logits hardly depend on the input: two different inputs differ by {control_of(logits):.1e} of their "
            f"scale, at least {_LEAST_SIGNAL * tolerance:.0e} is needed to compare anything"
        )
    for name, values in _each(expected):
        if not errors.get(name, 0.0) <= tolerance and spread(values) < _LEAST_SIGNAL * tolerance * np.abs(values).max():
            return (
                f"what the model computes at {name} hardly depends on the input: it varies by {spread(values):.1e} "
                f"among values of up to {np.abs(values).max():.1e}, so that rounding hides it"
            )
    if exempt > _MOST_EXEMPT * len(logits):
        return (
            f"{exempt} of {len(logits)} samples are so close to a probe threshold that rounding decides where they "
            "leave; the confidences of an exit hardly differ"
        )
    return ""


def failure(errors: Mapping[str, float], tolerance: float, agreement: float) -> str:
    """Describe what differs from torch by more than is allowed; return an empty string if nothing does."""
    for name, error in errors.items():
        if not error <= tolerance:
            return f"the relative error at {name} is {error:.1e}; at most {tolerance:.0e} is allowed"
    if agreement < 1:
        return f"{1 - agreement:.1%} of the samples leave at another exit than in torch"
    return ""


def refusal(
    verification: Verification,
    *,
    random: bool,
    pictures: bool,
    measure_rounding: Callable[[], Mapping[str, float]],
    check_model: Callable[[], None],
) -> VerificationError:
    """Return the error for a verification that did not pass, with the cause as far as it can be determined.

    Args:
        verification: the result, whose verdict is not ``passed``.
        random: whether the weights are random.
        pictures: whether the user's images were used.
        measure_rounding: see :func:`dyce_export.verification.rounding.rounding_errors`.
        check_model: called if rounding does not explain the errors; raises if the model is one that no bundle can
            reproduce.
    """
    if verification.verdict == "inconclusive":
        return VerificationError(
            f"verification is inconclusive: {verification.reason}",
            hint=f"Nothing was written, since nothing could be shown. {_advice(random=random, pictures=pictures)}",
        )
    rounding = measure_rounding()
    if explained_by_rounding(verification, rounding):
        power = math.ceil(math.log10(verification.max_relative_error))
        return VerificationError(
            f"verification failed: {verification.reason}. This is rounding: the model amplifies it, torch's own "
            f"float32 is up to {max(rounding.values()):.1e} from float64",
            hint=f"--tolerance 1e{power} accepts it, if that is precise enough for you."
            if power <= -2
            else "In float32 its answers mean little, in torch as here.",
        )
    check_model()
    return VerificationError(
        f"verification failed: {verification.reason}",
        hint="The exported pieces do not compute what the model computes; nothing was written. Please report it.",
    )


def _advice(*, random: bool, pictures: bool) -> str:
    if random:
        return "Its weights are random: export trained ones."
    if not pictures:
        return "It was tried on synthetic pictures: give real ones with --data."
    return (
        "Run the model in torch on some of these pictures: its weights, or how pictures are prepared for it "
        "(--mean, --std), may be wrong. An exit that is named can be left out of --exits."
    )


def _each(expected: Mapping[str, Sequence[Floats]]) -> Iterator[tuple[str, Floats]]:
    return ((name, values) for name, several in expected.items() for values in several)
