"""Which segments stay in float32: the most harmful first, no more than needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dyce_export.precision.trials import Bench, Limits, Trial, best_trial
from dyce_export.progress import Progress
from dyce_runtime.errors import VerificationError


class Harms:
    """A bench on which every lowered segment takes its part of the agreement, and of the accuracy."""

    def __init__(self, harms: Sequence[float], loss: float = 0.0) -> None:
        self.segments = tuple(f"segment_{k:02d}" for k in range(len(harms)))
        self._harms, self._loss = dict(zip(self.segments, harms, strict=True)), loss
        self.tried: list[tuple[str, ...]] = []
        self.counts: list[int] = []

    def attempt(self, kept: Sequence[str], samples: Any, progress: Progress) -> Trial:
        self.tried.append(tuple(kept))
        self.counts.append(len(samples))
        lowered = set(self.segments) - set(kept)
        agreement = 1 - sum(self._harms[one] for one in lowered)
        manifest, records = cast("Any", None), cast("Any", None)
        return Trial(tuple(kept), manifest, records, agreement, (0.9, 0.9 - self._loss * len(lowered)))


DEFAULT = Limits()


def best(bench: Harms, limits: Limits = DEFAULT, count: int = 5000) -> Trial:
    return best_trial(cast("Bench", bench), count, limits, Progress())


def test_everything_is_lowered_if_that_is_within_the_limits() -> None:
    bench = Harms([0.002, 0.003])
    assert best(bench).kept == ()
    assert set(bench.tried) == {()}
    assert bench.counts[-1] == 5000, "the figures of a bundle rest on all samples"


def test_the_most_harmful_segments_stay_and_no_more() -> None:
    bench = Harms([0.02, 0.001, 0.03, 0.002])
    assert best(bench).kept == ("segment_00", "segment_02")
    assert bench.counts.count(5000) == 1, "all samples are run where few of them say that it is worth it"


def test_accuracy_counts_as_well() -> None:
    assert best(Harms([0.001, 0.0], loss=0.008)).kept == ("segment_00",)


def test_if_nothing_helps_the_best_is_named_with_what_was_asked() -> None:
    with pytest.raises(VerificationError, match=r"98\.0%.*segment_01.*kept in float32.*99\.0%") as caught:
        best(Harms([0.02, 0.3]))
    assert "--min-agreement" in str(caught.value.hint)


@given(
    st.lists(st.floats(0, 0.2), min_size=1, max_size=6),
    st.floats(0.5, 1.0),
)
def test_what_is_found_is_within_the_limits_and_lowers_something(harms: list[float], asked: float) -> None:
    bench = Harms(harms)
    try:
        found = best(bench, Limits(asked, 1.0))
    except VerificationError:
        assert 1 - min(harms) < asked
    else:
        assert found.agreement >= asked
        assert len(found.kept) < len(harms)


def test_few_samples_are_all_used() -> None:
    bench = Harms([0.02, 0.0])
    best(bench, count=7)
    assert set(bench.counts) == {7}
