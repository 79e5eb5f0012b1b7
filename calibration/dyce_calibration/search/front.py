"""The front of a search: for every gain, the cheapest setting found so far."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from dyce_calibration.search.line import Line
from dyce_calibration.search.problem import ExitChoice, Setting

# A smaller difference is not an improvement, since sums of costs in another order differ in their last bits.
_SAME = 1e-11


class Front:
    """The settings found so far that no other one dominates in cost and gain.

    Cell g holds the cheapest setting whose gain, summed over the samples, is exactly g. With single labels that is the
    number of samples that it classifies correctly.

    Args:
        most: G, the highest gain that a setting can have.

    Attributes:
        bound: (G + 1,) float64: the lowest cost per sample found with at least that gain.
    """

    def __init__(self, most: int) -> None:
        self.bound = np.full(most + 1, np.inf)
        self._cost = np.full(most + 1, np.inf)
        self._threshold = np.zeros(most + 1, np.float32)
        self._line = np.full(most + 1, -1)
        self._lines: list[Line] = []
        self._points: NDArray[np.int64] | None = None

    def improving(self, gain: NDArray[np.int64], cost: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the indices of candidates that are cheaper than all settings found so far with at least their gain."""
        return np.flatnonzero(cost < self.bound.take(gain) - _SAME)

    def add(
        self, gain: NDArray[np.int64], cost: NDArray[np.float64], thresholds: NDArray[np.float32], line: Line
    ) -> None:
        """Add candidates of one line. All of them have to be improving.

        Args:
            gain: (n,) summed over the samples.
            cost: (n,) per sample.
            thresholds: (n,) at the line's position.
        """
        if len(gain) == 0:
            return
        order = np.lexsort((-cost, gain))  # the cheapest of equal gains is written last
        gain, cost = gain[order], cost[order]
        self._cost[gain], self._threshold[gain], self._line[gain] = cost, thresholds[order], len(self._lines)
        self._lines.append(line)
        # Only cells up to the highest gain, and only those that cost more, can have become cheaper.
        cells = slice(np.searchsorted(self.bound, cost.min()), gain[-1] + 1)
        bound = self.bound[cells]
        np.minimum(bound, np.minimum.accumulate(self._cost[cells][::-1])[::-1], out=bound)
        self._points = None

    def points(self) -> NDArray[np.int64]:
        """Return the gains on the front, ascending, and therefore with ascending costs."""
        if self._points is None:
            more_gain = np.append(self.bound[1:], np.inf)
            self._points = np.flatnonzero((self._cost < more_gain) & np.isfinite(self._cost))
        return self._points

    def setting(self, point: int) -> Setting:
        """Return the setting of a point, that is a gain on the front."""
        line = self._lines[self._line[point]]
        choice = None if line.head is None else ExitChoice(line.head, float(self._threshold[point]))
        return (*line.setting[: line.position], choice, *line.setting[line.position + 1 :])

    def settings(self) -> list[Setting]:
        """Return the settings of all points, cheapest first."""
        return [self.setting(point) for point in self.points().tolist()]

    def lines(self) -> Iterator[tuple[Line, NDArray[np.int64], NDArray[np.float32]]]:
        """Yield the points of the front, grouped by the line that they are on: (line, points, thresholds)."""
        points = self.points()
        order = np.argsort(self._line[points], kind="stable")
        for group in np.split(points[order], np.flatnonzero(np.diff(self._line[points[order]])) + 1):
            yield self._lines[self._line[group[0]]], group, self._threshold[group]
