import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dyce_calibration.heads.temperature import fit_temperature, softmax
from dyce_runtime.errors import DataError


def cross_entropy(logits: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    scaled = logits.astype(np.float64) / temperature
    log_sum = np.log(np.exp(scaled - scaled.max(1, keepdims=True)).sum(1)) + scaled.max(1)
    return float((log_sum - scaled[np.arange(len(labels)), labels]).mean())


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5, 8.0])
def test_a_known_temperature_is_recovered(temperature):
    random = np.random.default_rng(0)
    true_logits = random.normal(0, 2, (20000, 10))
    uniform = random.gumbel(size=true_logits.shape)
    labels = (true_logits + uniform).argmax(1)  # drawn from softmax(true_logits)
    found = fit_temperature((true_logits * temperature).astype(np.float32), labels)
    assert found == pytest.approx(temperature, rel=0.05)


@pytest.mark.parametrize(("classes", "spread"), [(2, 2.0), (10, 2.0), (10, 6.0), (1000, 3.0)])
def test_a_hundred_samples_calibrate_unseen_ones_about_as_well_as_the_truth(classes, spread):
    random = np.random.default_rng(1)
    lost = []
    for _ in range(10):
        logits = random.normal(0, spread, (1100, classes))
        labels = (logits + random.gumbel(size=logits.shape)).argmax(1)
        found = fit_temperature(logits[:100].astype(np.float32), labels[:100])
        lost.append(cross_entropy(logits[100:], labels[100:], found) - cross_entropy(logits[100:], labels[100:], 1.0))
    assert np.mean(lost) < 0.02


# --- where samples say little -----------------------------------------------------------------------------------------


def all_right(count: int, classes: int, margin: float = 6.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels of a classifier that never errs, surer of some samples than of others."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, count)
    logits = random.normal(0, 1, (count, classes))
    logits[np.arange(count), labels] = logits.max(1) + random.uniform(0.5, 1.5, count) * margin
    return logits.astype(np.float32), labels


counts, classes = st.sampled_from([2, 20, 150, 1000]), st.sampled_from([2, 10, 100])


@given(counts, classes, st.floats(0.1, 100), st.integers(0, 9))
def test_without_a_mistake_confidences_claim_what_that_many_samples_support(count, classes, margin, seed):
    logits, labels = all_right(count, classes, margin, seed)
    confidences = softmax(logits, fit_temperature(logits, labels)).max(1)
    assert 1 - confidences.mean() > 0.5 / (count + 2)
    assert (confidences == 1).mean() <= 0.1, "samples have to be told apart"


def test_more_samples_without_a_mistake_allow_more_confidence_and_one_mistake_less():
    logits, labels = all_right(1000, 2)
    found = [fit_temperature(logits[:count], labels[:count]) for count in (10, 30, 100, 300)]
    assert found == sorted(found, reverse=True)
    labels[0] = 1 - labels[0]
    assert fit_temperature(logits[:300], labels[:300]) > found[-1]


@given(st.sampled_from([1e-4, 0.5, 16.0, 1e4]), counts, classes, st.sampled_from(["right", "mixed", "wrong"]))
def test_confidences_do_not_depend_on_the_scale_of_the_logits(scale, count, classes, kind):
    logits, labels = all_right(count, classes)
    labels = {"right": labels, "mixed": np.arange(count) % classes, "wrong": logits.argmin(1)}[kind]
    found = fit_temperature(logits * np.float32(scale), labels)
    assert found == pytest.approx(scale * fit_temperature(logits, labels), rel=1e-3)


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_a_classifier_that_is_always_wrong_is_as_good_as_undecided_yet_tells_samples_apart(classes):
    logits, _ = all_right(200, classes)
    confidences = softmax(logits, fit_temperature(logits, logits.argmin(1))).max(1)
    assert (confidences < 1.5 / classes).all()
    assert len(np.unique(confidences)) > 150


@pytest.mark.parametrize("shape", [(1, 3), (5, 1), (20, 7)])
def test_constant_logits_have_temperature_1(shape):
    assert fit_temperature(np.full(shape, 3.0, np.float32), np.zeros(shape[0], np.int64)) == 1.0


def test_excluded_classes_change_nothing():
    logits, labels = all_right(50, 5)
    more = np.concatenate([logits, np.full((50, 1), -np.inf, np.float32)], axis=1)
    assert fit_temperature(more, labels) == pytest.approx(fit_temperature(logits, labels))
    masked = np.concatenate([logits, np.full((50, 1), -1e9, np.float32)], axis=1)
    assert fit_temperature(masked, labels) == pytest.approx(fit_temperature(logits, labels))
    assert fit_temperature(more, np.full(50, 5)) == 1.0, "a label that is excluded"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_refused(value):
    logits, labels = all_right(50, 5)
    logits[[3, 7], 2] = value
    with pytest.raises(DataError, match="logits of 2 of 50 samples"):
        fit_temperature(logits, labels)


# --- softmax ---------------------------------------------------------------------------------------------------------


@given(hnp.arrays(np.float32, (3, 5), elements=st.floats(-1e4, 1e4, width=32)), st.floats(0.05, 20))
def test_softmax_is_a_distribution_with_the_order_of_the_logits(logits, temperature):
    found = softmax(logits, temperature)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)
    assert (found >= 0).all()
    assert (found[np.arange(3), logits.argmax(1)] == found.max(1)).all()


def test_softmax_at_a_temperature_is_softmax_of_scaled_logits():
    logits = np.array([[2.0, 0.0, -2.0]], np.float32)
    expected = np.exp([4.0, 0.0, -4.0]) / np.exp([4.0, 0.0, -4.0]).sum()
    np.testing.assert_allclose(softmax(logits, 0.5)[0], expected, rtol=1e-6)
