"""What a user is told when nothing could be shown: the reason, and a way out that exists."""

import pytest

from dyce_export.verification.verdict import refusal
from dyce_runtime.bundle.manifest import Verification


def hint(*, random: bool, pictures: bool) -> str:
    unclear = Verification("inconclusive", 1e-4, 0.0, {}, 0.0, 1.0, 0, 32, reason="the logits hardly depend on it")
    error = refusal(unclear, random=random, pictures=pictures, measure_rounding=dict, check_model=lambda: None)
    assert error.message == "verification is inconclusive: the logits hardly depend on it"
    return error.hint


def test_random_weights_are_the_first_suspect():
    assert "export trained ones" in hint(random=True, pictures=True)
    assert "export trained ones" in hint(random=True, pictures=False)


def test_without_pictures_data_are_asked_for():
    assert "--data" in hint(random=False, pictures=False)


@pytest.mark.parametrize("missing", ["trained", "--data"])
def test_nothing_is_asked_for_that_was_given(missing):
    assert missing not in hint(random=False, pictures=True)
