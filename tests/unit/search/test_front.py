from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dyce_calibration.search.front import Front
from dyce_calibration.search.line import Line
from dyce_calibration.search.problem import ExitChoice

candidates = st.lists(st.tuples(st.integers(0, 8), st.integers(1, 50).map(lambda n: n / 50)), min_size=1, max_size=30)


@given(st.lists(candidates, min_size=1, max_size=5))
def test_the_front_is_what_nothing_offered_beats(offers):
    """Each offer is a line; thresholds number the candidates, so that a setting tells which one it was."""
    front, every = Front(8), {}
    for number, offer in enumerate(offers):
        right = np.array([r for r, _ in offer])
        cost = np.array([c for _, c in offer])
        thresholds = np.arange(len(offer), dtype=np.float32)
        better = front.improving(right, cost)
        front.add(right[better], cost[better], thresholds[better], Line((None, None), 1, number))
        every |= {(number, float(t)): pair for t, pair in zip(thresholds, offer, strict=True)}
        bound = [min((cost for r, cost in every.values() if r >= least), default=np.inf) for least in range(9)]
        assert front.bound.tolist() == bound
        assert [point for point in range(9) if bound[point] < [*bound, np.inf][point + 1]] == front.points().tolist()
    expected = {
        r: min(c for other, c in every.values() if other == r)
        for r, c in every.values()
        if not any(other >= r and lower <= c and (other, lower) != (r, c) for other, lower in every.values())
    }
    points = front.points().tolist()
    assert {point: front.bound[point] for point in points} == expected
    for point, setting in zip(points, front.settings(), strict=True):
        assert setting[0] is None
        assert every[setting[1].head, setting[1].threshold] == (point, expected[point])
    by_line = {int(p): (line.head, float(t)) for line, ps, ts in front.lines() for p, t in zip(ps, ts, strict=True)}
    assert by_line == {p: (s[1].head, s[1].threshold) for p, s in zip(points, front.settings(), strict=True)}


def test_a_line_that_turns_a_position_off_has_no_threshold():
    front = Front(3)
    front.add(
        np.array([2]),
        np.array([0.5]),
        np.zeros(1, np.float32),
        Line((ExitChoice(0, 0.5), ExitChoice(1, 0.25)), 0, None),
    )
    assert front.settings() == [(None, ExitChoice(1, 0.25))]
