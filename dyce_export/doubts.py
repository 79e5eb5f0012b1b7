"""Results that cannot be: an export stops at them, or goes on when it is told to and says so in the bundle."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from dyce_runtime.errors import SuspiciousDataError
from dyce_runtime.inputs.class_order import Doubt

log = logging.getLogger("dyce_export")


def accept(doubts: Sequence[Doubt], *, allowed: bool) -> tuple[str, ...]:
    """What the bundle says of them, where they are allowed; each is also logged.

    Raises:
        SuspiciousDataError: there are doubts, and they are not allowed; tells the first.
    """
    if doubts and not allowed:
        hint = f"{doubts[0].hint} --allow-suspicious goes on all the same."
        raise SuspiciousDataError(doubts[0].message, hint=hint)
    said = tuple(f"{doubt.message}. {doubt.assumed}" if doubt.assumed else doubt.message for doubt in doubts)
    for message in said:
        log.warning("suspicious, and allowed: %s", message)
    return said
