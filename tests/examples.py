"""How many examples a property gets that takes long for each."""

from __future__ import annotations

from hypothesis import settings


def few(count: int) -> settings:
    """So many in a quick run; as many as other properties in ``make nightly``, whose profile is loaded by then."""
    usual = settings()
    return settings(max_examples=count) if usual.max_examples < 100 else usual
