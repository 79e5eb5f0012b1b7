"""Energy that a machine draws, read from Linux's sysfs: counters of processors, power sensors of Jetson boards."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Event, Lock, Thread

from dyce_runtime.errors import TargetError

_SAMPLE_SECONDS = 0.01
# By board, the rails that together carry what the module draws, none of it twice: those with one rail for it all
# (Orin NX, Orin Nano, Xavier NX, TX2; Nano), AGX Orin, AGX Xavier. AGX Orin's VDDQ_VDD2_1V8AO hangs on VIN_SYS_5V0.
_WHOLE = (
    ("VDD_IN",),
    ("POM_5V_IN",),
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),
)
_ROOT_ONLY = (
    "Many kernels let only root read it. Run as root, or allow it until the next start: "
    "`sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj`."
)
_NOWHERE = (
    "Virtual machines and containers hide it: run on the machine itself, as root, with the kernel module "
    "intel_rapl_msr on a PC. Milliseconds need none of that."
)


class Meter(ABC):
    """Counts energy from when it is made; used in ``with``.

    Attributes:
        source: what is read, for a reader.
    """

    source: str

    @abstractmethod
    def joules(self) -> float:
        """Energy so far. Raises TargetError if it can no longer be read."""

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *_: object) -> None:
        return


class Rapl(Meter):
    """The counters of processor packages, added up; memory is not in them.

    A counter starts again at 0 behind its range, which takes minutes at the least: ``joules`` has to be called more
    often than that.
    """

    def __init__(self, packages: Sequence[Path]) -> None:
        self.source = "RAPL, " + " + ".join(_read(package / "name") for package in packages)
        self._files = [package / "energy_uj" for package in packages]
        self._ranges = [int(_read(package / "max_energy_range_uj")) for package in packages]
        self._last = self._counts()
        self._microjoules = 0

    def joules(self) -> float:
        """Energy so far."""
        now = self._counts()
        for before, after, whole in zip(self._last, now, self._ranges, strict=True):
            self._microjoules += (after - before) % whole
        self._last = now
        return self._microjoules / 1e6

    def _counts(self) -> list[int]:
        return [int(_read(file)) for file in self._files]


class Ina3221(Meter):
    """The power of rails, added up; a thread sums it up over time, between ``__enter__`` and ``__exit__``."""

    def __init__(self, rails: Mapping[str, tuple[Path, Path]]) -> None:
        self.source = "INA3221, " + " + ".join(rails)
        self._rails = list(rails.values())
        self._joules = 0.0
        self._watts, self._at = self._power(), time.perf_counter()
        self._lock, self._stop = Lock(), Event()
        self._thread = Thread(target=self._watch, daemon=True)

    def joules(self) -> float:
        """Energy so far."""
        with self._lock:
            watts, now = self._power(), time.perf_counter()
            self._joules += (self._watts + watts) / 2 * (now - self._at)
            self._watts, self._at = watts, now
            return self._joules

    def __enter__(self) -> Meter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(_SAMPLE_SECONDS):
            with suppress(TargetError):  # the next sample closes the gap
                self.joules()

    def _power(self) -> float:
        return sum(int(_read(millivolts)) * int(_read(milliamperes)) for millivolts, milliamperes in self._rails) / 1e6


def find_meter(root: Path = Path("/sys")) -> Meter:
    """The energy meter of this machine: RAPL (Intel and AMD) or a Jetson's INA3221.

    Args:
        root: where sysfs is mounted.

    Raises:
        TargetError: there is none, it may not be read, or a board's rails are not known to add up to the whole.
    """
    zones = sorted(root.glob("class/powercap/intel-rapl:*"))
    # Zones inside a package (core, uncore, dram) stand beside it here, and psys holds them all: no sum of all zones.
    if packages := [zone for zone in zones if _read(zone / "name").startswith("package")]:
        return Rapl(packages)
    rails = _rails(root)
    for names in _WHOLE:
        if rails.keys() >= set(names):
            return Ina3221({name: rails[name] for name in names})
    sensors = f"rails that are not known to add up to the whole ({', '.join(rails)})" if rails else "no power sensor"
    raise TargetError(
        f"no energy meter was found: no processor package in {root}/class/powercap/intel-rapl:* (Intel, AMD) and "
        f"{sensors} in {root}/bus/i2c/drivers/ina3221 (Jetson)",
        hint=_NOWHERE,
    )


def _rails(root: Path) -> dict[str, tuple[Path, Path]]:
    """The label of every rail to its files: voltage in mV and current in mA."""
    labels = sorted(root.glob("bus/i2c/drivers/ina3221/*/hwmon/hwmon*/in[123]_label"))
    return {
        _read(label): (label.with_name(f"in{label.name[2]}_input"), label.with_name(f"curr{label.name[2]}_input"))
        for label in labels
    }


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError as error:
        hint = _ROOT_ONLY if isinstance(error, PermissionError) else ""
        raise TargetError(f"{path} cannot be read: {error.strerror}", hint=hint) from error
