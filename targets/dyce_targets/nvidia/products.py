"""What differs between the two products: their modules, and which GPUs an engine can be built for."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dyce_runtime.errors import TargetError

if TYPE_CHECKING:
    import tensorrt


@dataclass(frozen=True)
class Product:
    """A product.

    Attributes:
        name: of the target.
        module: name of its Python module.
        title: what it is called.
        install: how it is had.
        ahead: whether it builds engines for GPUs that are not in this machine.
        times: whether it times tactics while it builds, which is worth keeping for the next piece.
    """

    name: str
    module: str
    title: str
    install: str
    ahead: bool
    times: bool

    def missing(self) -> str | None:
        """None if the module can be imported, otherwise what to do.

        ``tensorrt-stubs`` makes an empty package of the name ``tensorrt``, so a spec alone says nothing.
        """
        try:
            found = hasattr(importlib.import_module(self.module), "Builder")
        except ModuleNotFoundError:
            found = False
        except (Exception, SystemExit) as error:  # an installation may be broken in any way
            return f"{self.title} does not load: {type(error).__name__}: {error}"
        return None if found else f"{self.title} is not installed; {self.install}"

    def load(self) -> Any:
        """The module. Raises TargetError if it is not installed."""
        reason = self.missing()
        if reason is not None:
            raise TargetError(f"{self.name}: {reason}")
        return importlib.import_module(self.module)

    def target_devices(self, trt: Any, config: tensorrt.IBuilderConfig, devices: tuple[str, ...]) -> None:
        """Build for these compute capabilities, such as ``sm86``; for all that one engine can serve if there are none.

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
        rtx: Any = config  # TensorRT's own stubs do not know these
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
