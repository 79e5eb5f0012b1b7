"""The targets ``tensorrt`` and ``rtx``, which run engines of TensorRT and TensorRT-RTX."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from dyce_runtime.errors import TargetError
from dyce_runtime.execution.contracts import Artefact, Device, PieceSpec, TargetSpec
from dyce_runtime.execution.memory import TensorLife
from dyce_targets import installation
from dyce_targets.nvidia import cuda, engines
from dyce_targets.nvidia.builder import build
from dyce_targets.nvidia.device import GpuDevice
from dyce_targets.nvidia.products import RTX, TENSORRT, Product
from dyce_targets.nvidia.tensorrt_executor import TensorRtExecutor
from dyce_targets.profiles import Profile, here, profiles

log = logging.getLogger("dyce_targets")

# A chunk size above that of any engine, so that the device limits it.
_MOST_ROWS = 1 << 16


class _Nvidia:
    """Base class of both targets. They use no spans: with CUDA graphs, a further segment is just one more launch."""

    product: ClassVar[Product]
    spans = False
    engines = True

    @property
    def name(self) -> str:
        """The name of the target."""
        return self.product.name

    def installed(self) -> str | None:
        """Return None, or a message that the product or a GPU's driver is missing, without importing the product."""
        return installation.missing(self.product.module, self.product.install) or cuda.driver_missing()

    def available(self) -> str | None:
        """Return None, or a message that the product or a GPU is missing."""
        return self.compiles() or cuda.missing()

    def compiles(self) -> str | None:
        """Return None, or a message that the product is not installed."""
        return self.product.missing()

    def version(self) -> str:
        """Return the version of the product."""
        return installation.version_of(self.product.module)

    def best_batch(self, spec: TargetSpec, macs: int) -> int:
        """Return ``spec.max_batch``, or else a number above the largest batch of any engine: the device limits it."""
        return spec.max_batch or _MOST_ROWS

    def compile(self, piece: PieceSpec, spec: TargetSpec, folder: Path) -> Artefact:
        """Build the engine of a piece, unless the folder has one with the same fingerprint.

        Raises:
            BundleError, TargetError: see :func:`dyce_targets.nvidia.builder.build`.
            DestinationError: the engine cannot be written.
        """
        wanted = engines.fingerprint(self.name, self.product.load().__version__, piece, spec)
        found = engines.find(folder, piece.id, wanted)
        if found is not None:
            return Artefact(found, built=False)
        return Artefact(engines.write(folder, piece.id, wanted, build(self.product, piece, spec, folder)), built=True)

    def open(self, pieces: Sequence[PieceSpec], tensors: Sequence[TensorLife], spec: TargetSpec) -> Device:
        """Load the engines; those that are missing for this GPU are built, which may take minutes, and stored.

        Raises:
            BundleError, DestinationError: see :meth:`compile`.
            TargetError: the target is not available here, or the device is out of memory.
        """
        reason = self.available()
        if reason:
            raise TargetError(f"{self.name}: {reason}")
        device = cuda.compute_capability()
        spec = replace(spec, max_batch=spec.max_batch or self._built_for(pieces, spec, device) or _profile().max_batch)
        built = {piece.id: self._engine(piece, spec, device) for piece in pieces}
        return GpuDevice(self.name, pieces, tensors, TensorRtExecutor(self.product, pieces, built), spec.max_batch or 1)

    def _built_for(self, pieces: Sequence[PieceSpec], spec: TargetSpec, device: str) -> int | None:
        """Return the largest batch that the existing engines of all pieces accept; None if an engine is missing."""
        least = replace(spec, max_batch=1)
        version, found = self.product.load().__version__, []
        for piece in pieces:
            wanted = engines.fingerprint(self.name, version, piece, least)
            made = [engines.made_for(folder, piece.id, wanted, device) for folder in spec.engines]
            found.append(max((one.max_batch for one in made if one is not None), default=None))
        return None if None in found else min(found)  # type: ignore[type-var]

    def _engine(self, piece: PieceSpec, spec: TargetSpec, device: str) -> Path:
        wanted = engines.fingerprint(self.name, self.product.load().__version__, piece, spec)
        for folder in spec.engines:
            found = engines.find_for(folder, piece.id, wanted, device)
            if found is not None:
                return found
        if not spec.engines:
            raise TargetError(
                f"{self.name} runs engines that are built from a bundle; found no folder for that of {piece.id}",
                hint="Open the bundle with dyce_runtime.load.",
            )
        log.warning("%s: building %s for this GPU, once", self.name, piece.id)
        own = replace(spec, devices=(), workspace_mib=_profile().workspace_mib)
        return self.compile(piece, own, spec.engines[-1]).path


def _profile() -> Profile:
    """Return the profile of this machine, or else that of a server GPU."""
    return profiles()[here() or "server-gpu"]


class TensorRt(_Nvidia):
    """TensorRT, for Jetson boards and servers: engines are built on the device."""

    product = TENSORRT


class TensorRtRtx(_Nvidia):
    """TensorRT-RTX, for desktop GPUs: engines are built on any machine."""

    product = RTX
