"""Results that cannot be: an export stops at them, or goes on when it is told to and says so in the bundle."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from dyce_runtime.class_order import Doubt
from dyce_runtime.errors import SuspiciousDataError

log = logging.getLogger("dyce_export")


def accept(doubts: Sequence[Doubt], *, allowed: bool) -> tuple[str, ...]:
    """What the bundle says of them, where they are allowed; each is also logged.

    Raises:
        SuspiciousDataError: there are doubts, and they are not allowed; tells the first.
    """
    for doubt in doubts:
        if not allowed:
            raise SuspiciousDataError(doubt.message, hint=f"{doubt.hint} --allow-suspicious goes on all the same.")
        log.warning("suspicious, and allowed: %s", doubt.message)
    return tuple(doubt.message for doubt in doubts)
