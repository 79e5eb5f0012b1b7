"""Exits taken according to records, and how many of two computations are the same."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dyce_calibration.promises.agreement import exit_agreement, exits_taken
from dyce_calibration.records import Records
from dyce_runtime.bundle.configuration import Configuration, ExitSetting

HEADS = (("2", "a"), ("2", "b"), ("5", "a"))


def records(confidences: list[list[float]]) -> Records:
    count = len(confidences)
    return Records.of_single_label(
        HEADS,
        np.zeros((count, 4), np.int64),
        np.array(confidences, np.float32).reshape(count, 4),
        np.zeros(count, np.int64),
        np.arange(count, dtype=np.uint64),
        np.full(count, "test"),
    )


def on(**exits: tuple[str, float]) -> Configuration:
    return Configuration("own", {name[1:]: ExitSetting(*setting) for name, setting in exits.items()})


def test_a_sample_leaves_at_the_first_head_that_is_on_and_sure_enough() -> None:
    found = records([[0.9, 0.1, 0.9, 1], [0.5, 0.9, 0.5, 1], [0.9, 0.9, 0.7, 1]])
    assert exits_taken(found, on(e2=("a", 0.5), e5=("a", 0.6))).tolist() == [0, 3, 0]
    assert exits_taken(found, on(e2=("b", 0.5), e5=("a", 0.6))).tolist() == [2, 1, 1]
    assert exits_taken(found, on()).tolist() == [3, 3, 3]


def test_a_confidence_equal_to_the_threshold_in_float32_does_not_leave() -> None:
    found = records([[0.1, 0, 0, 1]])
    assert exits_taken(found, on(e2=("a", 0.1))).tolist() == [3]
    assert exits_taken(found, on(e2=("a", float(np.nextafter(np.float32(0.1), np.float32(0)))))).tolist() == [0]


def test_agreement_is_that_of_the_configuration_with_the_least() -> None:
    one, other = records([[0.9, 0, 0, 1], [0.7, 0, 0, 1]]), records([[0.9, 0, 0, 1], [0.5, 0, 0, 1]])
    assert exit_agreement(one, other, [on(e2=("a", 0.8))]) == 1
    assert exit_agreement(one, other, [on(e2=("a", 0.8)), on(e2=("a", 0.6))]) == 0.5
    assert exit_agreement(one, other, []) == 1


@given(
    st.lists(st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4), min_size=1, max_size=20),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_the_same_is_found_sample_by_sample(confidences: list[list[float]], first: float, second: float) -> None:
    found, configuration = records(confidences), on(e2=("b", first), e5=("a", second))
    for row, taken in zip(confidences, exits_taken(found, configuration), strict=True):
        if np.float32(row[1]) > np.float32(first):
            assert taken == 1
        else:
            assert taken == (2 if np.float32(row[2]) > np.float32(second) else 3)


def test_a_head_that_was_not_recorded_takes_nobody() -> None:
    assert exits_taken(records([[1, 1, 1, 1]]), on(e2=("c", 0.0))).tolist() == [3]
