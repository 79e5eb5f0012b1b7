"""Exceptions for errors that a user can act on, each with an exit code and a stable code for ``--json``.

A message says what was found and what was expected; a hint says what to do about it. Any other exception that reaches
the user is a bug in this package.
"""

from __future__ import annotations


class DyceError(Exception):
    """Base class of all errors that the user can act on.

    Attributes:
        code: stable identifier, written into JSON documents.
        exit_code: exit code of the command line.
        message: what was found and what was expected.
        hint: what to do about it; may be empty.
    """

    code = "failed"
    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(DyceError):
    """The arguments of a command or call are invalid or contradict each other."""

    code = "usage"
    exit_code = 2


class ModelError(DyceError):
    """A checkpoint or model cannot be loaded."""

    code = "model"


class TaskError(ModelError):
    """The outputs of a model are not scores for one label per image."""

    code = "task"


class CaptureError(DyceError):
    """A model cannot be captured as a graph or written as ONNX."""

    code = "capture"


class ExitPointError(DyceError):
    """The requested exits are not exit points of the model."""

    code = "exits"


class DataError(DyceError):
    """A data set is empty, unreadable or does not fit the model."""

    code = "data"


class SuspiciousDataError(DataError):
    """Labels and predictions disagree in a way that makes results computed from them untrustworthy."""

    code = "suspicious"


class DestinationError(DyceError):
    """The output cannot be written."""

    code = "destination"


class BundleError(DyceError):
    """A bundle is incomplete, damaged or from an incompatible version."""

    code = "bundle"


class ConfigurationError(DyceError):
    """A configuration does not fit the bundle, or its use is not allowed."""

    code = "configuration"


class RuntimeInputError(DyceError):
    """An input array does not fit the model."""

    code = "input"


class PieceError(DyceError):
    """A compiled piece failed at run time."""

    code = "piece"


class VerificationError(DyceError):
    """The exported pieces do not compute what the model computes."""

    code = "verification"
    exit_code = 3


class TargetError(DyceError):
    """A target or an energy meter is not available on this machine."""

    code = "target"
    exit_code = 4
