"""Thresholds for verification: they split the samples, and rounding cannot move one across."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dyce_calibration.heads.temperature import softmax
from dyce_export.verification.probe_thresholds import NONE_LEAVE, all_leave, doubts, threshold_between

confidences = hnp.arrays(np.float32, st.integers(1, 32), elements=st.floats(0.125, 1, width=32))


@given(confidences, st.sampled_from([0.0, 1e-6, 1e-3, 0.1]))
def test_a_threshold_leaves_few_in_doubt_and_has_samples_on_both_sides_or_none_leave(values, doubt):
    threshold = threshold_between(values, doubt)
    assert threshold == np.float32(threshold)
    if threshold == NONE_LEAVE:
        assert not (values > np.float32(threshold)).any()
        assert (values > all_leave(values)).all()
    else:
        assert 0 < (values > np.float32(threshold)).sum() < len(values)
        assert (np.abs(values - threshold) <= doubt).sum() <= len(values) / 8


def test_the_gap_nearest_to_the_median_is_taken_of_those_that_leave_nobody_in_doubt():
    crowded = np.array([0.1, 0.2, 0.5, 0.5 + 1e-6, 0.5 + 2e-6, 0.5 + 3e-6, 0.9, 0.95], np.float32)
    assert threshold_between(crowded, 1e-5) in (pytest.approx(0.35), pytest.approx(0.7))
    assert threshold_between(np.array([0.1, 0.2, 0.3, 0.9], np.float32), 1e-5) == pytest.approx(0.25)


def test_a_sample_in_doubt_is_better_than_no_threshold():
    values = np.linspace(0.5, 0.531, 32, dtype=np.float32)
    assert threshold_between(values, 0.0016) == pytest.approx(0.5155, abs=1e-4)
    assert threshold_between(values, 0.004) == NONE_LEAVE


@pytest.mark.parametrize("value", [1e-3, 0.5, 1.0])
def test_equal_confidences_cannot_be_told_apart(value):
    assert threshold_between(np.full(32, value, np.float32), 0.0) == NONE_LEAVE


def test_confidences_close_to_1_are_told_apart_by_what_is_left():
    """Those of a head that never errs: 1 - p runs from 1e-3 to 1e-5."""
    margins = np.linspace(7, 11.5, 32, dtype=np.float32)
    logits = np.stack([margins, np.zeros_like(margins)], axis=1)
    values = softmax(logits, 1.0).max(axis=1)
    threshold = threshold_between(values, doubts(values, logits, 1.0, 1e-4))
    assert 8 <= (values > threshold).sum() <= 24


@given(
    hnp.arrays(np.float32, (8, 5), elements=st.floats(-30, 30, width=32)),
    hnp.arrays(np.float64, (8, 5), elements=st.floats(-1, 1)),
    st.sampled_from([0.1, 1.0, 10.0]),
)
def test_logits_within_the_tolerance_move_no_confidence_by_more_than_its_doubt(logits, errors, temperature):
    tolerance = 1e-4
    spread = np.abs(logits - logits.mean(0, dtype=np.float64)).max()
    moved = (logits + tolerance * spread * errors).astype(np.float32)
    before, after = (softmax(values, temperature).max(axis=1) for values in (logits, moved))
    assert (np.abs(after - before) <= 1.1 * doubts(before, logits, temperature, tolerance)).all()
