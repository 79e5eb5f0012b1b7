"""The base class of targets on a CPU, which read the ONNX files of a bundle and compute in host memory."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from dyce_runtime.errors import TargetError
from dyce_runtime.execution.contracts import Artefact, PieceSpec, TargetSpec
from dyce_runtime.execution.memory import TensorLife
from dyce_targets import installation
from dyce_targets.cpu.host_context import HostDevice


class CpuTarget(ABC):
    """A target on a CPU.

    Attributes:
        name: name of the target and of its Python module.
        extra: the extra of dyce-export that installs it.
    """

    name: str
    extra: str
    spans = True
    engines = False

    def available(self) -> str | None:
        """Return None, or a message that the module is not installed. It is not imported."""
        return installation.missing(self.name, self.install)

    def version(self) -> str:
        """Return the version of the module."""
        return installation.version_of(self.name)

    def best_batch(self, spec: TargetSpec, macs: int) -> int:
        """Estimate the best chunk size: about 2 G multiply-accumulates per thread, and at most 64 samples per thread.

        Large chunks of a small model spread the overhead of a call; those of a large model do not fit into the caches.
        """
        return min(max(1, 2_000_000_000 // max(macs, 1)), 64) * (spec.threads or os.cpu_count() or 1)

    def compiles(self) -> str | None:
        """Import the module; return None, or a message that it is not installed or broken."""
        try:
            self.load()
        except TargetError as error:
            return error.message
        return None

    def compile(self, piece: PieceSpec, spec: TargetSpec, folder: Path) -> Artefact:
        """Return the ONNX file itself."""
        return Artefact(piece.path, built=False)

    def open(self, pieces: Sequence[PieceSpec], tensors: Sequence[TensorLife], spec: TargetSpec) -> HostDevice:
        """Load every piece.

        Raises:
            TargetError: the target is not available, or cannot be used with these options.
            BundleError: a piece does not load.
        """
        reason = self.available()
        if reason:
            raise TargetError(f"{self.name}: {reason}")
        return self._open(pieces, tensors, spec)

    @property
    def install(self) -> str:
        """The command that installs the module."""
        return f"pip install 'dyce-export[{self.extra}]'"

    @abstractmethod
    def load(self) -> ModuleType:
        """Import the module. Raises TargetError if it is not installed or broken."""

    @abstractmethod
    def _open(self, pieces: Sequence[PieceSpec], tensors: Sequence[TensorLife], spec: TargetSpec) -> HostDevice:
        """Load every piece. Called only if the module is installed."""
