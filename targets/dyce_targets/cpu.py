"""What holds for every engine on a CPU: it reads the ONNX files of a bundle and computes in the host's memory."""

from __future__ import annotations

import importlib.util
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path

from dyce_runtime.contracts import Artefact, PieceSpec, TargetSpec
from dyce_runtime.errors import TargetError
from dyce_targets.host_lane import HostDevice


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
        """None, or that the module is not installed."""
        if importlib.util.find_spec(self.name) is None:
            return f"{self.name} is not installed; pip install 'dyce-export[{self.extra}]'"
        return None

    def version(self) -> str:
        """Of the module."""
        try:
            return version(self.name)
        except PackageNotFoundError:  # it may come with a distribution of another name, such as onnxruntime-gpu
            distributions = packages_distributions().get(self.name)
            return version(distributions[0]) if distributions else "unknown"

    def best_batch(self, spec: TargetSpec, macs: int) -> int:
        """About 2 GMACs per thread: of a small model many are worth a call, of a large one they leave the caches.

        A guess, where nothing was measured.
        """
        return min(max(1, 2_000_000_000 // max(macs, 1)), 64) * (spec.threads or os.cpu_count() or 1)

    def compiles(self) -> str | None:
        """As :meth:`available`."""
        return self.available()

    def compile(self, piece: PieceSpec, spec: TargetSpec, folder: Path) -> Artefact:
        """The ONNX file itself."""
        return Artefact(piece.path, built=False)

    def open(self, pieces: Sequence[PieceSpec], spec: TargetSpec) -> HostDevice:
        """Load every piece. Raises TargetError, or BundleError for a piece that does not load."""
        reason = self.available()
        if reason:
            raise TargetError(f"{self.name}: {reason}")
        return self._open(pieces, spec)

    @abstractmethod
    def _open(self, pieces: Sequence[PieceSpec], spec: TargetSpec) -> HostDevice:
        """Load every piece; the module is there."""
