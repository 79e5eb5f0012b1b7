"""Implausible results: an export stops at them, or records them in the bundle when it is told to continue."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from dyce_runtime.errors import SuspiciousDataError
from dyce_runtime.inputs.class_order import Doubt

log = logging.getLogger("dyce_export")


def accept(doubts: Sequence[Doubt], *, allowed: bool) -> tuple[str, ...]:
    """Log the doubts and return them as sentences for the bundle, if they are allowed.

    Raises:
        SuspiciousDataError: there are doubts and they are not allowed; reports the first one.
    """
    if doubts and not allowed:
        hint = f"{doubts[0].hint} --allow-suspicious goes on all the same."
        raise SuspiciousDataError(doubts[0].message, hint=hint)
    said = tuple(f"{doubt.message}. {doubt.assumed}" if doubt.assumed else doubt.message for doubt in doubts)
    for message in said:
        log.warning("suspicious result, accepted because suspicious results are allowed: %s", message)
    return said
