import numpy as np
import pytest

from dyce_calibration.promises.certify import certified, samples_needed
from dyce_runtime.errors import UsageError


def draw(random, count, worse, better):
    """Losses of a configuration that is wrong where the full model is right with probability ``worse``."""
    u = random.random(count)
    return np.where(u < worse, 1, np.where(u < worse + better, -1, 0)).astype(np.int8)


@pytest.mark.parametrize(("worse", "better"), [(0.01, 0.0), (0.03, 0.02), (0.2, 0.19)])
@pytest.mark.parametrize("count", [300, 3000])
def test_a_loss_beyond_the_promise_is_certified_as_rarely_as_promised(worse, better, count):
    """The hardest case: a loss of exactly epsilon. Of 1000 draws at most delta are certified, up to three sigmas."""
    random = np.random.default_rng(0)
    wrong = sum(certified([draw(random, count, worse, better)], 0.01, 0.05) for _ in range(1000))
    assert wrong <= 1000 * (0.05 + 3 * np.sqrt(0.05 * 0.95 / 1000))


def test_a_sequence_of_bad_configurations_is_no_better_than_one():
    random = np.random.default_rng(1)
    wrong = 0
    for _ in range(500):
        losses = [draw(random, 1000, 0.03, 0.02) for _ in range(20)]
        wrong += certified(losses, 0.01, 0.05) > 0
    assert wrong <= 500 * (0.05 + 3 * np.sqrt(0.05 * 0.95 / 500))


def test_good_configurations_are_certified():
    random = np.random.default_rng(2)
    passed = sum(certified([draw(random, 5000, 0.015, 0.013)], 0.01, 0.05) for _ in range(200))
    assert passed >= 160


def test_testing_stops_at_the_first_that_fails():
    random = np.random.default_rng(3)
    good, bad = np.zeros(5000, np.int8), draw(random, 5000, 0.1, 0.0)
    assert certified([good, good, bad, good], 0.01, 0.05) == 2


def test_few_samples_certify_nothing_and_the_number_that_would_is_known():
    nothing_lost = np.zeros(50, np.int8)
    assert certified([nothing_lost], 0.01, 0.05) == 0
    needed = samples_needed(nothing_lost, 0.01, 0.05)
    assert certified([np.zeros(2 * needed, np.int8)], 0.01, 0.05) == 1
    assert certified([np.zeros(needed // 2, np.int8)], 0.01, 0.05) == 0


def test_the_number_needed_is_about_right_for_a_loss_too():
    random = np.random.default_rng(4)
    needed = samples_needed(draw(random, 10**6, 0.015, 0.012), 0.01, 0.05)
    share = np.mean([certified([draw(random, needed, 0.015, 0.012)], 0.01, 0.05) for _ in range(100)])
    assert 0.3 < share < 0.95


def test_no_number_helps_against_a_loss_beyond_the_promise():
    assert samples_needed(np.array([1, 0, 0, 0], np.int8), 0.01, 0.05) is None


@pytest.mark.parametrize(
    ("epsilon", "delta", "named"), [(0, 0.05, "epsilon"), (0.01, 1, "delta"), (-1, 0.1, "epsilon")]
)
def test_promises_that_nothing_can_keep_are_refused(epsilon, delta, named):
    with pytest.raises(UsageError, match=f"{named} is"):
        certified([np.zeros(10, np.int8)], epsilon, delta)
