from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dyce_runtime import Configuration, ExitSetting, Session
from dyce_runtime.bundle.configuration import float32_midpoint
from dyce_runtime.errors import ConfigurationError
from tests.bundles import HEAD, on

confidences = st.floats(0, 1, width=32)


@given(confidences, confidences)
@example(0.0, float(np.float32(1e-45)))
@example(0.0, 1.0)
def test_a_midpoint_separates_two_confidences_under_strict_routing(a, b):
    low, high = np.float32(min(a, b)), np.float32(max(a, b))
    if low == high:
        return
    threshold = float32_midpoint(low, high)
    assert np.float32(threshold) == threshold
    assert low <= threshold < high


@given(st.floats(0, 1, width=32, exclude_max=True))
def test_a_midpoint_separates_even_neighbours(a):
    low = np.float32(a)
    assert float32_midpoint(low, np.nextafter(low, np.float32(2))) == low


def test_a_midpoint_lies_in_the_middle():
    assert float32_midpoint(0.25, 0.75) == 0.5


@pytest.mark.parametrize("exits", [{}, on(exit3=0.0), on(exit7=1.0), on(exit3=0.3, exit7=0.9)])
def test_what_the_bundle_has_is_accepted(shared_session: Session, exits):
    Configuration("mine", exits).check(shared_session.manifest)


@pytest.mark.parametrize(
    ("exits", "message"),
    [
        (on(exit5=0.5), "'mine' turns on exit '5'; this bundle has the exits 3, 7"),
        (on(final=0.5), "'mine' turns on exit 'final'"),
        ({"3": ExitSetting("mlp9x9", 0.5)}, f"'mine' uses head 'mlp9x9' at exit 3; the bundle has: {HEAD}"),
        (on(exit7=-0.1), r"the threshold of exit 7 is -0\.1; expected a number from 0 to 1"),
        (on(exit7=1.1), r"exit 7 is 1\.1"),
        (on(exit7=math.nan), "exit 7 is nan"),
        (on(exit7=math.inf), "exit 7 is inf"),
    ],
)
def test_what_the_bundle_does_not_have_is_refused(shared_session: Session, exits, message):
    with pytest.raises(ConfigurationError, match=message):
        Configuration("mine", exits).check(shared_session.manifest)


def test_a_configuration_cannot_be_changed():
    configuration = Configuration("mine", on(exit3=0.5))
    with pytest.raises(AttributeError):
        configuration.name = "yours"
    with pytest.raises(AttributeError):
        configuration.exits["3"].threshold = 0.1
