"""Doubts about data stop an export; where they are allowed, the log and the bundle say what was assumed instead."""

import pytest

from dyce_export.doubts import accept
from dyce_runtime.errors import SuspiciousDataError
from dyce_runtime.inputs.class_order import Doubt

ORDER = Doubt("val: nothing says which folder is which class", "Give --classes.", True, "The folders are sorted")
CHANCE = Doubt("val: no better than chance", "Check --mean.")


def test_a_doubt_stops_unless_it_is_allowed():
    with pytest.raises(SuspiciousDataError, match="nothing says which folder") as caught:
        accept([ORDER, CHANCE], allowed=False)
    assert caught.value.hint == "Give --classes. --allow-suspicious goes on all the same."
    assert accept([], allowed=False) == ()


def test_what_is_assumed_is_said_where_doubts_are_allowed(caplog):
    said = accept([ORDER, CHANCE], allowed=True)
    assert said == ("val: nothing says which folder is which class. The folders are sorted", CHANCE.message)
    assert all(message in caplog.text for message in said)
