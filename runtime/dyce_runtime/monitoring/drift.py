"""Detect drift: compare the exits taken and their confidences with those expected from the calibration records."""

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

# Splits that no threshold was chosen on, so that exits and confidences are distributed as on new samples. The search
# split is not, as the thresholds were fitted to it. Both splits are used, since few samples make a noisy reference.
_HELD_OUT = ("certification", "test")
# Confidences are rounded to multiples of this, since engines differ by less.
_GRAIN = 1e-5
# Fewest expected samples in a bin; with fewer, the chi-square approximation of the index does not hold.
_LEAST_EXPECTED = 5
# Standard normal quantile that is exceeded once in a million times. It is this high since several indices are tested,
# many times.
_RARELY = 4.753
# Drift is evaluated after every 100 samples.
_EVERY = 100
# When a distribution holds this many samples, all its counts are halved, so that older samples lose weight.
_REMEMBERED = 10_000
# Samples that a work cap forces to exit are missing at later exits. The shares are counted again after this many
# samples without a forced exit.
_CAPPED = 1000
# Drift ends when the index falls below this fraction of its limit (hysteresis).
_ENDED = 0.5


class Stability(msgspec.Struct, frozen=True):
    """How far an observed distribution is from the expected one.

    Attributes:
        psi: the population stability index; None if it cannot be computed.
        limit: a ``psi`` above it counts as drift; None if ``psi`` is None.
        samples: the total weight of the observed samples: all counts are halved whenever it reaches 10,000 (or twice
            the minimum of samples, if that is more).
        reason: why ``psi`` is None; empty if it is not.
    """

    psi: float | None
    limit: float | None
    samples: int
    reason: str = ""


class DriftReport(msgspec.Struct, frozen=True):
    """The latest drift evaluation of a configuration, made after every 100 of its samples.

    Attributes:
        configuration: the first one seen with these settings; others may have the same settings and another name.
        drifted: whether an index rose above its limit and has not fallen below half of it since; None if no index is
            known.
        shares: stability of the shares of the exits taken.
        exits: exit id to the stability of the confidences of the samples that exited there, for the exits that are on
            and ``final``.
    """

    configuration: Configuration
    drifted: bool | None
    shares: Stability
    exits: dict[str, Stability]


def population_stability_index(expected: Sequence[float], observed: Sequence[float]) -> float:
    """Return the sum over bins of (a - e) ln(a / e), where e and a are the expected and the observed share of a bin.

    Args:
        expected, observed: samples in each bin; both have the same length. Half a sample is added to each bin, so that
            no share is 0.
    """
    all_expected, all_observed = sum(expected) + len(expected) / 2, sum(observed) + len(observed) / 2
    index = 0.0
    for ours, theirs in zip(expected, observed, strict=True):
        e, a = (ours + 0.5) / all_expected, (theirs + 0.5) / all_observed
        index += (a - e) * math.log(a / e)
    return index


class Expected(msgspec.Struct, frozen=True, eq=False):
    """Recorded confidences of the samples that no threshold was chosen on.

    Attributes:
        columns: (exit id, head type) to the column of that head.
        confidences: (N, heads + 1) float32; the last column is that of the final head.
    """

    columns: dict[tuple[str, str], int]
    confidences: npt.NDArray[np.float32]


def read_expected(path: Path) -> tuple[Expected | None, str]:
    """Read the calibration records of a bundle.

    Returns:
        the records and an empty string, or None and the reason why there are none to compare with.

    Raises:
        BundleError: the file is damaged.
    """
    if not path.is_file():
        return None, "the bundle has no records: it was exported without data"
    file = read_arrays(path, "records")
    try:
        exits, heads, confidences, split = (file[name] for name in ("exit", "head", "scores", "split"))
        columns = {head: column for column, head in enumerate(zip(exits.tolist(), heads.tolist(), strict=True))}
        if confidences.dtype != np.float32 or confidences.shape != (len(split), len(exits) + 1):
            raise ValueError(f"confidences are {confidences.dtype} of shape {confidences.shape}")
        if split.dtype.kind != "U" or split.ndim != 1:
            raise ValueError(f"splits are {split.dtype} of shape {split.shape}")
        if not ((confidences >= 0) & (confidences <= 1)).all():
            raise ValueError("a confidence is not from 0 to 1")
    except (KeyError, ValueError, TypeError) as error:
        raise BundleError(f"{path} does not hold records: {error}", hint="Export the bundle again.") from error
    held_out = confidences[np.isin(split, _HELD_OUT)]
    if not len(held_out):
        return None, f"the records have no samples of the splits {' and '.join(_HELD_OUT)}"
    return Expected(columns, held_out), ""


def replay(records: Expected, configuration: Configuration, manifest: Manifest) -> dict[str, npt.NDArray[np.float32]]:
    """Apply a configuration to the recorded confidences.

    Returns:
        exit id to the confidences (n,) float32 of the samples that exit there, for the exits that are on and ``final``.

    Raises:
        KeyError: with (exit id, head type) of a head that was not recorded.
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
    """Counts of the observed samples in each bin of a distribution, compared with the expected counts.

    Attributes:
        edges: the ascending boundaries between the bins; empty if the bins are categories.
        reason: why no comparison is possible; empty if it is.
    """

    def __init__(self, expected: Sequence[int], edges: Sequence[float] = (), reason: str = "") -> None:
        self.edges = edges
        self.reason = reason
        self._expected = expected
        self._observed = [0.0] * len(expected)
        self._total = 0.0

    def add(self, bin: int, remembered: int) -> None:
        """Count a sample. When the total reaches ``remembered``, halve all counts."""
        self._observed[bin] += 1
        self._total += 1
        if self._total >= remembered:
            self._observed = [count / 2 for count in self._observed]
            self._total /= 2

    def stability(self, minimum: int, threshold: float) -> Stability:
        """Return the current stability; its ``psi`` is None with fewer than ``minimum`` samples."""
        samples = int(self._total)
        if self.reason:
            return Stability(None, None, samples, self.reason)
        if samples < minimum:
            return Stability(None, None, samples, f"{samples} samples were observed; expected at least {minimum}")
        chance = _by_chance(len(self._expected)) * (1 / samples + 1 / sum(self._expected))
        psi = population_stability_index(self._expected, self._observed)
        return Stability(psi, max(threshold, chance), samples)


def _by_chance(bins: int) -> float:
    """Return the one-in-a-million quantile of chi-square with ``bins`` - 1 degrees of freedom (Wilson-Hilferty)."""
    spread = 2 / (9 * (bins - 1))
    return (bins - 1) * float((1 - spread + _RARELY * math.sqrt(spread)) ** 3)


def compare_confidences(expected: npt.NDArray[np.float32] | None, bins: int, reason: str) -> Comparison:
    """Make the comparison of the confidences at one exit, with at most ``bins`` quantile bins of the expected ones.

    Equal confidences share a bin, and every bin holds at least 5 expected samples.

    Args:
        expected: (n,) confidences, or None if nothing is known of them.
        bins: the most bins.
        reason: why ``expected`` is None.
    """
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


# Stands for an exit that is off: no confidence is above its threshold.
_NOWHERE = math.inf, 0, Comparison([0])


class Watched:
    """The exits taken under a configuration and their confidences, compared with the expected ones.

    Attributes:
        report: the latest evaluation.
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
        # How many further samples are left out of the shares, after a forced exit.
        self._capped = 0
        # Index of each exit that is on to its threshold, its bin in the shares, and the comparison of its confidences.
        self._places: dict[int, tuple[float, int, Comparison]] = {}
        for place, (id, own) in enumerate(exits.items()):
            floor = -1.0 if id == FINAL else float(np.float32(configuration.exits[id].threshold))
            self._places[manifest.exit_index(id)] = floor, place, own
        self._unjudged = 0
        self.report = self._judge(False)

    def add(self, exits: Sequence[int], confidences: Sequence[float]) -> DriftReport | None:
        """Count samples by exit index and confidence. Return the report if they make drift begin, otherwise None."""
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
        """Evaluate drift now. ``before`` says whether there was drift at the previous evaluation (hysteresis)."""
        shares = self._shares.stability(self._minimum, self._threshold)
        if self._capped and shares.psi is not None:
            shares = Stability(None, None, shares.samples, "a work cap forced samples to exit early")
        exits = {id: own.stability(self._minimum, self._threshold) for id, own in self._exits.items()}
        ratios = [
            found.psi / found.limit
            for found in (shares, *exits.values())
            if found.psi is not None and found.limit is not None
        ]
        drifted = max(ratios) > (_ENDED if before else 1.0) if ratios else None
        return DriftReport(self._configuration, drifted, shares, exits)
