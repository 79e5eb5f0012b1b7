"""Run early-exit bundles: ``session = dyce_runtime.load("model.dyce")``. This package does not need torch."""

from dyce_runtime.bundle.configuration import Configuration, ExitSetting
from dyce_runtime.bundle.reader import Bundle, open_bundle
from dyce_runtime.errors import DyceError
from dyce_runtime.execution.loading import load
from dyce_runtime.execution.routing import Result
from dyce_runtime.execution.session import Session

__all__ = ["Bundle", "Configuration", "DyceError", "ExitSetting", "Result", "Session", "load", "open_bundle"]
