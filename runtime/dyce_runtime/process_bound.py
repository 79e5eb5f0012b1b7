"""What belongs to the process that made it: it is neither pickled nor copied, and a forked child leaves it alone.

A fork copies no threads. Destroying an engine waits for its threads, so in a child that would wait forever, be it that
somebody closes the session there or that Python collects it. The child therefore keeps what it inherits until it ends.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from typing import NoReturn
from weakref import WeakSet

from dyce_runtime.errors import UsageError


class ProcessBound:
    """Pickling or copying it raises UsageError."""

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        kind = type(self).__name__
        raise UsageError(
            f"a {kind} belongs to the process that made it; it can be neither pickled nor copied",
            hint=f"Give workers the path of the bundle: each loads it and makes a {kind} for itself.",
        )


class EngineOwner(ProcessBound, ABC):
    """Something that holds an engine with threads."""

    def __init__(self) -> None:
        _owners.add(self)

    @abstractmethod
    def inherited(self) -> object:
        """Called in a forked child. Returns what must not be destroyed there."""


_owners: WeakSet[EngineOwner] = WeakSet()


def _keep_what_is_inherited() -> None:
    import ctypes

    for owner in list(_owners):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(owner.inherited()))


os.register_at_fork(after_in_child=_keep_what_is_inherited)
