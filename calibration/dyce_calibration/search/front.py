"""The front: for every gain, the cheapest setting found so far."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from dyce_calibration.search.line import Line
from dyce_calibration.search.problem import ExitChoice, Setting

# Sums of costs in another order differ in their last bits; that is no improvement.
_SAME = 1e-11


class Front:
    """The settings that no other one found so far beats in both cost and gain.

    Cell g holds the cheapest setting with a gain of exactly g, summed over the samples: with single labels, one that
    labels g samples right.

    Args:
        most: the highest gain that a setting can have, G.

    Attributes:
        bound: (G + 1,) the lowest cost found with at least that gain.
    """

    def __init__(self, most: int) -> None:
        self.bound = np.full(most + 1, np.inf)
        self._cost = np.full(most + 1, np.inf)
        self._threshold = np.zeros(most + 1, np.float32)
        self._line = np.full(most + 1, -1)
        self._lines: list[Line] = []
        self._points: NDArray[np.int64] | None = None

    def improving(self, gain: NDArray[np.int64], cost: NDArray[np.float64]) -> NDArray[np.int64]:
        """Indices of the candidates that nothing found so far equals or beats."""
        return np.flatnonzero(cost < self.bound.take(gain) - _SAME)

    def add(
        self, gain: NDArray[np.int64], cost: NDArray[np.float64], thresholds: NDArray[np.float32], line: Line
    ) -> None:
        """Add candidates of one line, all of them improving."""
        if len(gain) == 0:
            return
        order = np.lexsort((-cost, gain))  # of equal gains the cheapest is written last
        gain, cost = gain[order], cost[order]
        self._cost[gain], self._threshold[gain], self._line[gain] = cost, thresholds[order], len(self._lines)
        self._lines.append(line)
        # Only cells up to the highest gain, and only those that cost more, can have become cheaper.
        cells = slice(np.searchsorted(self.bound, cost.min()), gain[-1] + 1)
        bound = self.bound[cells]
        np.minimum(bound, np.minimum.accumulate(self._cost[cells][::-1])[::-1], out=bound)
        self._points = None

    def points(self) -> NDArray[np.int64]:
        """The gains on the front, ascending; the cost rises with them."""
        if self._points is None:
            more_gain = np.append(self.bound[1:], np.inf)
            self._points = np.flatnonzero((self._cost < more_gain) & np.isfinite(self._cost))
        return self._points

    def setting(self, point: int) -> Setting:
        """The setting of a point of the front."""
        line = self._lines[self._line[point]]
        choice = None if line.head is None else ExitChoice(line.head, float(self._threshold[point]))
        return (*line.setting[: line.position], choice, *line.setting[line.position + 1 :])

    def settings(self) -> list[Setting]:
        """The settings of all points, cheapest first."""
        return [self.setting(point) for point in self.points().tolist()]

    def lines(self) -> Iterator[tuple[Line, NDArray[np.int64], NDArray[np.float32]]]:
        """The points of the front line by line: (line, points, thresholds)."""
        points = self.points()
        order = np.argsort(self._line[points], kind="stable")
        for group in np.split(points[order], np.flatnonzero(np.diff(self._line[points[order]])) + 1):
            yield self._lines[self._line[group[0]]], group, self._threshold[group]
