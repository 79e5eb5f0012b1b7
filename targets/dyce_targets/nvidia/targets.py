"""The two products as targets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from dyce_runtime.contracts import Artefact, Device, PieceSpec, TargetSpec
from dyce_runtime.errors import TargetError
from dyce_targets.nvidia import engines
from dyce_targets.nvidia.builder import build
from dyce_targets.nvidia.products import RTX, TENSORRT, Product


class _Nvidia:
    """What both have in common. A GPU launches segments: with CUDA graphs a boundary costs next to nothing."""

    product: ClassVar[Product]
    spans = False

    @property
    def name(self) -> str:
        """Name of the target."""
        return self.product.name

    def available(self) -> str | None:
        """Engines are built here, and not run yet."""
        return self.compiles() or f"this version builds engines with {self.product.title} and does not run them yet"

    def compiles(self) -> str | None:
        """None, or that the product is not installed."""
        return self.product.missing()

    def best_batch(self, spec: TargetSpec, macs: int) -> int:
        """As many as the engines were built for."""
        return spec.max_batch

    def compile(self, piece: PieceSpec, spec: TargetSpec, folder: Path) -> Artefact:
        """Build the engine of a piece, unless there is one that was built alike.

        Raises:
            BundleError, TargetError: see :func:`dyce_targets.nvidia.builder.build`.
            DestinationError: it cannot be written.
        """
        wanted = engines.fingerprint(self.name, self.product.load().__version__, piece, spec)
        found = engines.find(folder, piece.id, wanted)
        if found is not None:
            return Artefact(found, built=False)
        return Artefact(engines.write(folder, piece.id, wanted, build(self.product, piece, spec)), built=True)

    def open(self, pieces: Sequence[PieceSpec], spec: TargetSpec) -> Device:
        """Raises TargetError."""
        raise TargetError(f"{self.name}: {self.available()}")


class TensorRt(_Nvidia):
    """TensorRT, on Jetson and servers: engines are built on the device."""

    product = TENSORRT


class TensorRtRtx(_Nvidia):
    """TensorRT-RTX, for desktop GPUs: engines are built on any machine."""

    product = RTX
