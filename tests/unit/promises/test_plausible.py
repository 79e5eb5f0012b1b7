"""Records that cannot be: an exit far above the whole model."""

import numpy as np
import pytest

from dyce_calibration.promises.plausible import doubts_of
from dyce_calibration.records import Records


def records(exit, whole, count=400, split="search"):
    """Of one exit and the model, right on those shares of the samples."""
    random = np.random.default_rng(0)
    labels = np.zeros(count, np.int64)
    columns = [(random.random(count) >= share).astype(np.int64) for share in (exit, whole)]
    return Records.of_single_label(
        (("1", "mlp1x1000"),),
        np.stack(columns, 1),
        np.full((count, 2), 0.5, np.float32),
        labels,
        np.arange(count, dtype=np.uint64),
        np.full(count, split, "<U16"),
    )


def test_an_exit_tens_of_points_above_the_model_is_a_doubt():
    (doubt,) = doubts_of(records(0.9, 0.5))
    assert "exit 1" in doubt.message
    assert "--mean" in doubt.hint


@pytest.mark.parametrize(("exit", "whole"), [(0.5, 0.9), (0.9, 0.9), (0.93, 0.9)])
def test_an_exit_that_is_hardly_better_is_none(exit, whole):
    assert doubts_of(records(exit, whole)) == ()


def test_few_samples_and_other_splits_say_nothing():
    assert doubts_of(records(0.9, 0.3, count=150)) == ()
    assert doubts_of(records(0.9, 0.3, split="test")) == ()
