"""Objects that belong to the process that created them: they are never pickled, copied or destroyed in a forked child.

A fork does not copy threads. Destroying an engine waits for its threads, so a forked child that closes or
garbage-collects an inherited session would wait forever. The child therefore keeps inherited engines until it ends.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from typing import NoReturn
from weakref import WeakSet

from dyce_runtime.errors import UsageError


class ProcessBound:
    """Base class of objects that raise UsageError when they are pickled or copied."""

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        kind = type(self).__name__
        raise UsageError(
            f"a {kind} belongs to the process that made it; it can be neither pickled nor copied",
            hint=f"Give workers the path of the bundle: each loads it and makes a {kind} for itself.",
        )


class EngineOwner(ProcessBound, ABC):
    """Base class of objects that hold an engine with threads."""

    def __init__(self) -> None:
        _owners.add(self)

    @abstractmethod
    def inherited(self) -> object:
        """Return the object that a forked child must not destroy. Called in the child, right after the fork."""


_owners: WeakSet[EngineOwner] = WeakSet()


def _keep_what_is_inherited() -> None:
    import ctypes

    for owner in list(_owners):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(owner.inherited()))


os.register_at_fork(after_in_child=_keep_what_is_inherited)
