"""What holds for every engine on a CPU: it reads the ONNX files of a bundle and computes in the host's memory."""

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
    """An engine on a CPU.

    Attributes:
        name: of the target and of its Python module.
        extra: of dyce-export, which installs it.
    """

    name: str
    extra: str
    spans = True
    engines = False

    def available(self) -> str | None:
        """None, or that the module is not installed. It is not imported."""
        return installation.missing(self.name, self.install)

    def version(self) -> str:
        """Of the module."""
        return installation.version_of(self.name)

    def best_batch(self, spec: TargetSpec, macs: int) -> int:
        """About 2 GMACs per thread: of a small model many are worth a call, of a large one they leave the caches.

        A guess, where nothing was measured.
        """
        return min(max(1, 2_000_000_000 // max(macs, 1)), 64) * (spec.threads or os.cpu_count() or 1)

    def compiles(self) -> str | None:
        """As :meth:`available`; or that the module is broken, which shows when it is imported."""
        try:
            self.load()
        except TargetError as error:
            return error.message
        return None

    def compile(self, piece: PieceSpec, spec: TargetSpec, folder: Path) -> Artefact:
        """The ONNX file itself."""
        return Artefact(piece.path, built=False)

    def open(self, pieces: Sequence[PieceSpec], tensors: Sequence[TensorLife], spec: TargetSpec) -> HostDevice:
        """Load every piece. Raises TargetError, or BundleError for a piece that does not load."""
        reason = self.available()
        if reason:
            raise TargetError(f"{self.name}: {reason}")
        return self._open(pieces, tensors, spec)

    @property
    def install(self) -> str:
        """How the module is had."""
        return f"pip install 'dyce-export[{self.extra}]'"

    @abstractmethod
    def load(self) -> ModuleType:
        """Import the module. Raises TargetError if it is not installed or broken."""

    @abstractmethod
    def _open(self, pieces: Sequence[PieceSpec], tensors: Sequence[TensorLife], spec: TargetSpec) -> HostDevice:
        """Load every piece; the module is there."""
