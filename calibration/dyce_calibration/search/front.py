"""The front: for every number of right answers, the cheapest setting found so far."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from dyce_calibration.search.line import Line
from dyce_calibration.search.problem import On, Setting

# Sums of costs in another order differ in their last bits; that is no improvement.
_SAME = 1e-11


class Front:
    """The settings that no other one found so far beats in both cost and right answers.

    It is as long as there are samples: cell r holds the cheapest setting with exactly r right answers.

    Attributes:
        bound: (N + 1,) the lowest cost found with at least that many right answers.
    """

    def __init__(self, samples: int) -> None:
        self.bound = np.full(samples + 1, np.inf)
        self._cost = np.full(samples + 1, np.inf)
        self._threshold = np.zeros(samples + 1, np.float32)
        self._line = np.full(samples + 1, -1)
        self._lines: list[Line] = []
        self._points: NDArray[np.int64] | None = None

    def improving(self, right: NDArray[np.int64], cost: NDArray[np.float64]) -> NDArray[np.int64]:
        """Indices of the candidates that nothing found so far equals or beats."""
        return np.flatnonzero(cost < self.bound.take(right) - _SAME)

    def add(
        self, right: NDArray[np.int64], cost: NDArray[np.float64], thresholds: NDArray[np.float32], line: Line
    ) -> None:
        """Add candidates of one line, all of them improving."""
        if len(right) == 0:
            return
        order = np.lexsort((-cost, right))  # of equal right answers the cheapest is written last
        right, cost = right[order], cost[order]
        self._cost[right], self._threshold[right], self._line[right] = cost, thresholds[order], len(self._lines)
        self._lines.append(line)
        # Only cells up to the most right answers, and only those that cost more, can have become cheaper.
        cells = slice(np.searchsorted(self.bound, cost.min()), right[-1] + 1)
        bound = self.bound[cells]
        np.minimum(bound, np.minimum.accumulate(self._cost[cells][::-1])[::-1], out=bound)
        self._points = None

    def points(self) -> NDArray[np.int64]:
        """The numbers of right answers on the front, ascending; the cost rises with them."""
        if self._points is None:
            more_right = np.append(self.bound[1:], np.inf)
            self._points = np.flatnonzero((self._cost < more_right) & np.isfinite(self._cost))
        return self._points

    def setting(self, point: int) -> Setting:
        """The setting of a point of the front."""
        line = self._lines[self._line[point]]
        on = None if line.head is None else On(line.head, float(self._threshold[point]))
        return (*line.setting[: line.position], on, *line.setting[line.position + 1 :])

    def settings(self) -> list[Setting]:
        """The settings of all points, cheapest first."""
        return [self.setting(point) for point in self.points().tolist()]

    def lines(self) -> Iterator[tuple[Line, NDArray[np.int64], NDArray[np.float32]]]:
        """The points of the front line by line: (line, points, thresholds)."""
        points = self.points()
        order = np.argsort(self._line[points], kind="stable")
        for group in np.split(points[order], np.flatnonzero(np.diff(self._line[points[order]])) + 1):
            yield self._lines[self._line[group[0]]], group, self._threshold[group]
