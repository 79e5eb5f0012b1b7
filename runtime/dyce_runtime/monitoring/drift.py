"""Drift: what leaves where and how sure, beside what the calibration records let expect."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from dyce_runtime.bundle.arrays import read_arrays
from dyce_runtime.bundle.configuration import Configuration
from dyce_runtime.bundle.manifest import FINAL, Manifest
from dyce_runtime.errors import BundleError
from dyce_runtime.program.rule import leaves

# Splits that no threshold was chosen on: what leaves where, and how sure, is there as it is on new samples. On the
# search split the thresholds were fitted to just these samples. Two splits, as few samples mean much chance.
_HELD_OUT = ("certification", "test")
# Engines differ by less: confidences that are as near count as equal.
_GRAIN = 1e-5
# A bin has at least that many of the records' samples; below, the law of the index under chance does not hold.
_LEAST_EXPECTED = 5
# The quantile of a standard normal that is exceeded once in a million times: several indices are looked at, often.
_RARELY = 4.753
# Drift is judged whenever that many samples have come.
_EVERY = 100
# A distribution of that many observed samples is halved, so that the older ones are forgotten.
_REMEMBERED = 10_000
# Where a work cap sends samples out, those are missing further on: the shares count again after that many samples
# without any.
_CAPPED = 1000
# Drift has ended when the index is below that share of its limit, so that one at the limit does not come and go.
_ENDED = 0.5


class Stability(msgspec.Struct, frozen=True):
    """How far one observed distribution is from the one that the records let expect.

    Attributes:
        psi: the population stability index; None if it cannot be told.
        limit: above it, it counts as drift; None with ``psi``.
        samples: observed ones that it rests on, the latest ones: at every 10 000 the older ones lose half their weight.
        reason: why there is no number; empty if there is one.
    """

    psi: float | None
    limit: float | None
    samples: int
    reason: str = ""


class DriftReport(msgspec.Struct, frozen=True):
    """What was last found of a configuration; it is looked at after every 100 of its samples.

    Attributes:
        configuration: the first one seen that does this; others may do the same under another name.
        drifted: whether an index went above its limit and has not fallen below half of that; None if none is known.
        shares: of the exits that samples leave at.
        exits: exit id to the stability of the confidences of what left there, for exits that are on and ``final``.
    """

    configuration: Configuration
    drifted: bool | None
    shares: Stability
    exits: dict[str, Stability]


def population_stability_index(expected: Sequence[float], observed: Sequence[float]) -> float:
    """The sum over bins of (a - e) ln(a / e), for the shares e and a of the expected and of the observed samples.

    Args:
        expected, observed: samples in each bin, as many bins. Half a sample is added to each, so that no share is 0.
    """
    all_expected, all_observed = sum(expected) + len(expected) / 2, sum(observed) + len(observed) / 2
    index = 0.0
    for ours, theirs in zip(expected, observed, strict=True):
        e, a = (ours + 0.5) / all_expected, (theirs + 0.5) / all_observed
        index += (a - e) * math.log(a / e)
    return index


class Expected(msgspec.Struct, frozen=True, eq=False):
    """Confidences (N, heads + 1) float32 of the samples that no threshold was chosen on, the final head's last."""

    columns: dict[tuple[str, str], int]
    confidences: npt.NDArray[np.float32]


def read_expected(path: Path) -> tuple[Expected | None, str]:
    """The records, or why there are none to compare with. Raises BundleError if they are damaged."""
    if not path.is_file():
        return None, "the bundle has no records: it was exported without data"
    file = read_arrays(path, "records")
    try:
        exits, heads, confidences, split = (file[name] for name in ("exit", "head", "scores", "split"))
        columns = {head: column for column, head in enumerate(zip(exits.tolist(), heads.tolist(), strict=True))}
        if confidences.dtype != np.float32 or confidences.shape != (len(split), len(exits) + 1):
            raise ValueError(f"confidences are {confidences.dtype} of shape {confidences.shape}")
        if not ((confidences >= 0) & (confidences <= 1)).all():
            raise ValueError("a confidence is not from 0 to 1")
    except (KeyError, ValueError, TypeError) as error:
        raise BundleError(f"{path} does not hold records: {error}", hint="Export the bundle again.") from error
    held_out = confidences[np.isin(split, _HELD_OUT)]
    if not len(held_out):
        return None, f"the records have no samples of the splits {' and '.join(_HELD_OUT)}"
    return Expected(columns, held_out), ""


def replay(records: Expected, configuration: Configuration, manifest: Manifest) -> dict[str, npt.NDArray[np.float32]]:
    """The confidences of the records' samples that leave at each exit that is on, and at the final head.

    Raises KeyError with (exit id, head type) if a head was not recorded.
    """
    expected, going = {}, records.confidences
    for exit in manifest.exits[:-1]:
        if (setting := configuration.exits.get(exit.id)) is not None:
            confidence = going[:, records.columns[exit.id, setting.head]]
            leave = leaves(confidence, setting.threshold)
            expected[exit.id], going = confidence[leave], going[~leave]
    expected[FINAL] = going[:, -1]
    return expected


class Comparison:
    """The samples observed in each bin of a distribution, beside those expected there.

    Attributes:
        edges: between the bins, if these are of numbers.
        reason: why there is nothing to compare; empty if there is.
    """

    def __init__(self, expected: Sequence[int], edges: Sequence[float] = (), reason: str = "") -> None:
        self.edges = edges
        self.reason = reason
        self._expected = expected
        self._observed = [0.0] * len(expected)
        self._total = 0.0

    def add(self, bin: int, remembered: int) -> None:
        """Count a sample; at ``remembered`` of them all lose half their weight."""
        self._observed[bin] += 1
        self._total += 1
        if self._total >= remembered:
            self._observed = [count / 2 for count in self._observed]
            self._total /= 2

    def stability(self, minimum: int, threshold: float) -> Stability:
        """Of at least ``minimum`` samples."""
        samples = int(self._total)
        if self.reason:
            return Stability(None, None, samples, self.reason)
        if samples < minimum:
            return Stability(None, None, samples, f"{samples} samples were observed; expected at least {minimum}")
        chance = _by_chance(len(self._expected)) * (1 / samples + 1 / sum(self._expected))
        psi = population_stability_index(self._expected, self._observed)
        return Stability(psi, max(threshold, chance), samples)


def _by_chance(bins: int) -> float:
    """What a chi-square number with ``bins`` - 1 degrees of freedom seldom exceeds, after Wilson and Hilferty."""
    spread = 2 / (9 * (bins - 1))
    return (bins - 1) * float((1 - spread + _RARELY * math.sqrt(spread)) ** 3)


def compare_confidences(expected: npt.NDArray[np.float32] | None, bins: int, reason: str) -> Comparison:
    """Compares the confidences at one exit, in quantile bins of the expected ones. Equal ones are in one bin."""
    if expected is None:
        return Comparison([0], reason=reason)
    values, counts = np.unique(np.rint(expected.astype(np.float64) / _GRAIN), return_counts=True)
    up_to, total = counts.cumsum(), len(expected)
    ends: list[int] = []
    start = 0
    for place in np.flatnonzero(np.diff(up_to * bins // max(total, 1), prepend=0)).tolist():
        if min(up_to[place] - start, total - up_to[place]) >= _LEAST_EXPECTED:
            ends.append(place)
            start = up_to[place]
    if not ends:
        few = total < 2 * _LEAST_EXPECTED
        reason = f"{total} of the records' samples leave here" if few else "the records' confidences are equal here"
        return Comparison([total], reason=f"{reason}: nothing to compare with")
    edges = [float(values[end] + values[end + 1]) / 2 * _GRAIN for end in ends]
    return Comparison(np.diff([0, *up_to[ends], total]).tolist(), edges)


# An exit that is off: no confidence is enough.
_NOWHERE = math.inf, 0, Comparison([0])


class Watched:
    """A configuration, where its samples leave, and how sure.

    Attributes:
        report: what was last found.
    """

    def __init__(
        self,
        manifest: Manifest,
        configuration: Configuration,
        shares: Comparison,
        exits: Mapping[str, Comparison],
        threshold: float,
        minimum: int,
    ) -> None:
        self._configuration = configuration
        self._threshold, self._minimum = threshold, minimum
        self._remembered = max(_REMEMBERED, 2 * minimum)
        self._shares, self._exits = shares, exits
        # Samples to come that do not count in the shares.
        self._capped = 0
        # By the index of an exit that is on: what a sample has to exceed, its bin among the shares, its confidences.
        self._places: dict[int, tuple[float, int, Comparison]] = {}
        for place, (id, own) in enumerate(exits.items()):
            floor = -1.0 if id == FINAL else float(np.float32(configuration.exits[id].threshold))
            self._places[manifest.exit_index(id)] = floor, place, own
        self._unjudged = 0
        self.report = self._judge(False)

    def add(self, exits: Sequence[int], confidences: Sequence[float]) -> DriftReport | None:
        """Count samples. Returns the report if drift begins with them."""
        for exit, confidence in zip(exits, confidences, strict=True):
            floor, place, own = self._places.get(exit, _NOWHERE)
            if confidence <= floor:
                self._capped = _CAPPED
                continue
            own.add(bisect_right(own.edges, confidence), self._remembered)
            if self._capped:
                self._capped -= 1
            else:
                self._shares.add(place, self._remembered)
        self._unjudged += len(exits)
        if self._unjudged < _EVERY:
            return None
        self._unjudged = 0
        before = self.report.drifted is True
        self.report = self._judge(before)
        return self.report if self.report.drifted and not before else None

    def _judge(self, before: bool) -> DriftReport:
        """What can be said now.

        Args:
            before: whether there was drift.
        """
        shares = self._shares.stability(self._minimum, self._threshold)
        if self._capped and shares.psi is not None:
            shares = Stability(None, None, shares.samples, "a work cap sent samples out before they were sure")
        exits = {id: own.stability(self._minimum, self._threshold) for id, own in self._exits.items()}
        ratios = [
            found.psi / found.limit
            for found in (shares, *exits.values())
            if found.psi is not None and found.limit is not None
        ]
        drifted = max(ratios) > (_ENDED if before else 1.0) if ratios else None
        return DriftReport(self._configuration, drifted, shares, exits)
