from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dyce_runtime import Configuration, ExitSetting, Session
from dyce_runtime.bundle.configuration import Configurations, Entry, float32_midpoint, settings_of
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


def test_what_is_set_is_compared_whole_and_as_float32():
    on = {"1": ExitSetting("h", 0.1), "2": ExitSetting("h", 0.5)}
    turned = Configuration("b", dict(reversed(on.items())) | {"1": ExitSetting("h", float(np.float32(0.1)))})
    assert settings_of(Configuration("a", on, {"g": (0.5,)})) == settings_of(
        msgspec.structs.replace(turned, gates={"g": (0.5,)})
    )
    for other in (Entry(on), Entry(on, gates={"g": 1}), Entry({**on, "1": ExitSetting("i", 0.1)}, gates={"g": (0.5,)})):
        assert settings_of(other) != settings_of(Configuration("a", on, {"g": (0.5,)}))


def test_other_gates_are_not_what_a_loss_was_allowed_for():
    known = Configurations(named={"fast": Entry({}, allowed_loss=0.02, gates={"g": 1})})
    assert known.allowed_loss(known.get("fast")) == 0.02
    assert known.allowed_loss(Configuration("fast")) is None
