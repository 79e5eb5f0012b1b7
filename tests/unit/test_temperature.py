import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dyce_calibration.temperature import fit_temperature, softmax


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


samples = st.integers(2, 20).flatmap(
    lambda n: st.tuples(
        hnp.arrays(np.float32, (n, 4), elements=st.floats(-50, 50, width=32)),
        hnp.arrays(np.int64, n, elements=st.integers(0, 3)),
    )
)


@given(samples)
def test_the_cross_entropy_never_grows(drawn):
    logits, labels = drawn
    temperature = fit_temperature(logits, labels)
    assert cross_entropy(logits, labels, temperature) <= cross_entropy(logits, labels, 1.0) + 1e-9


@given(samples)
def test_no_other_temperature_in_the_range_is_better(drawn):
    logits, labels = drawn
    best = cross_entropy(logits, labels, fit_temperature(logits, labels))
    for other in np.geomspace(0.05, 20, 40):
        assert best <= cross_entropy(logits, labels, other) + 1e-6


def test_a_head_that_is_always_right_is_made_as_sure_as_allowed():
    labels = np.arange(8) % 4
    logits = np.eye(4, dtype=np.float32)[labels]
    assert fit_temperature(logits, labels) == pytest.approx(0.05, rel=1e-3)
    assert fit_temperature(logits, (labels + 1) % 4) == pytest.approx(20, rel=1e-3)


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
