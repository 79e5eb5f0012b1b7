"""The differences between TensorRT and TensorRT-RTX: their modules, and the GPUs for which they build engines."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dyce_runtime.errors import TargetError

if TYPE_CHECKING:
    import tensorrt


@dataclass(frozen=True)
class Product:
    """TensorRT or TensorRT-RTX.

    Attributes:
        name: name of the target.
        module: name of its Python module.
        title: name for the user.
        install: how to install it.
        ahead: whether it builds engines for GPUs that are not in this machine.
        times: whether it times tactics while it builds, so that a timing cache speeds up further builds.
    """

    name: str
    module: str
    title: str
    install: str
    ahead: bool
    times: bool

    def missing(self) -> str | None:
        """Return None if the module can be imported, otherwise a message with what to do.

        The module is imported, since ``tensorrt-stubs`` installs an empty package named ``tensorrt``.
        """
        try:
            found = hasattr(importlib.import_module(self.module), "Builder")
        except ModuleNotFoundError:
            found = False
        except (Exception, SystemExit) as error:  # importing a broken installation may raise anything
            return f"{self.title} does not load: {type(error).__name__}: {error}"
        return None if found else f"{self.title} is not installed; {self.install}"

    def load(self) -> Any:
        """Import the module. Raises TargetError if it is not installed or broken."""
        reason = self.missing()
        if reason is not None:
            raise TargetError(f"{self.name}: {reason}")
        return importlib.import_module(self.module)

    def target_devices(self, trt: Any, config: tensorrt.IBuilderConfig, devices: tuple[str, ...]) -> None:
        """Set the compute capabilities to build for, such as ``sm86``; if there are none, the product chooses.

        Args:
            trt: the product's module.
            config: the configuration of the build, which is changed.
            devices: the compute capabilities.

        Raises:
            TargetError: the product does not build for one of them.
        """
        if not devices:
            return
        if not self.ahead:
            raise TargetError(
                f"{self.title} builds for the GPU of this machine only; found a request for {', '.join(devices)}",
                hint=f"Name the target without them, `--target {self.name}`, on the device itself.",
            )
        known = {name.lower() for name in trt.ComputeCapability.__members__ if name.startswith("SM")}
        unknown = sorted(set(devices) - known)
        if unknown:
            raise TargetError(
                f"{self.title} {trt.__version__} does not build for {', '.join(unknown)}; it builds for "
                f"{', '.join(sorted(known, key=lambda name: int(name[2:])))}"
            )
        rtx: Any = config  # these attributes are missing in TensorRT's type stubs
        rtx.num_compute_capabilities = len(devices)
        for index, device in enumerate(devices):
            rtx.set_compute_capability(trt.ComputeCapability.__members__[device.upper()], index)


TENSORRT = Product(
    name="tensorrt",
    module="tensorrt",
    title="TensorRT",
    install="on Jetson it comes with JetPack (apt install python3-libnvinfer), elsewhere pip install tensorrt",
    ahead=False,
    times=True,
)
RTX = Product(
    name="rtx",
    module="tensorrt_rtx",
    title="TensorRT-RTX",
    install="pip install 'dyce-export[rtx]'",
    ahead=True,
    times=False,
)
