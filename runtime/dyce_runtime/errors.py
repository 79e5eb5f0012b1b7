"""What can go wrong for a user, each with its exit code and a stable code for ``--json``.

A message says what was found and what was expected; a hint says what to do. Anything that is not a
:class:`DyceError` is a bug of ours.
"""

from __future__ import annotations


class DyceError(Exception):
    """A mistake or a limit that the user can act on.

    Attributes:
        code: stable identifier, written into JSON documents.
        exit_code: exit code of the command line.
        hint: what to do about it; may be empty.
    """

    code = "failed"
    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(DyceError):
    """The words of the command or call do not fit together."""

    code = "usage"
    exit_code = 2


class ModelError(DyceError):
    """A checkpoint or model cannot be loaded."""

    code = "model"


class TaskError(ModelError):
    """The outputs of a model mean something else than one label per picture."""

    code = "task"


class CaptureError(DyceError):
    """A model cannot be captured as a graph or written as ONNX."""

    code = "capture"


class ExitPointError(DyceError):
    """Requested exits do not name exit points of the model."""

    code = "exits"


class DataError(DyceError):
    """A data set is empty, unreadable or does not fit the model."""

    code = "data"


class SuspiciousDataError(DataError):
    """Labels and answers do not go together as they should: what would be made from them cannot be trusted."""

    code = "suspicious"


class DestinationError(DyceError):
    """The output cannot be written."""

    code = "destination"


class BundleError(DyceError):
    """A bundle is incomplete, damaged or from an incompatible version."""

    code = "bundle"


class ConfigurationError(DyceError):
    """A configuration does not fit the bundle, or may not be used."""

    code = "configuration"


class RuntimeInputError(DyceError):
    """An input array does not fit the model."""

    code = "input"


class PieceError(DyceError):
    """A compiled piece failed while it ran."""

    code = "piece"


class VerificationError(DyceError):
    """The exported pieces do not compute what the model computes."""

    code = "verification"
    exit_code = 3


class TargetError(DyceError):
    """A target, or a meter to measure with, is not available on this machine."""

    code = "target"
    exit_code = 4
