"""Measure the energy that a machine uses, through Linux's sysfs: processor counters and Jetson power sensors."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Event, Lock, Thread

from dyce_runtime.errors import TargetError

_SAMPLE_SECONDS = 0.01
# By board, the rails that add up to the power of the module, without counting any of it twice: boards with a single
# rail (Orin NX, Orin Nano, Xavier NX, TX2; Nano), AGX Orin, AGX Xavier. AGX Orin's VDDQ_VDD2_1V8AO is supplied by
# VIN_SYS_5V0.
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
    """Counts energy, starting at 0 when it is created. Used as a context manager.

    Attributes:
        source: name of the counters or sensors that are read, for the user.
    """

    source: str

    @abstractmethod
    def joules(self) -> float:
        """Return the energy used so far. Raises TargetError if it can no longer be read."""

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *_: object) -> None:
        return


class Rapl(Meter):
    """The sum of the RAPL energy counters of all processor packages, which do not include memory.

    A counter wraps around at the end of its range, after some minutes or more; ``joules`` has to be called more often
    than that.
    """

    def __init__(self, packages: Sequence[Path]) -> None:
        self.source = "RAPL, " + " + ".join(_read(package / "name") for package in packages)
        self._files = [package / "energy_uj" for package in packages]
        self._ranges = [int(_read(package / "max_energy_range_uj")) for package in packages]
        self._last = self._counts()
        self._microjoules = 0

    def joules(self) -> float:
        """Return the energy used so far. Raises TargetError if a counter cannot be read."""
        now = self._counts()
        for before, after, whole in zip(self._last, now, self._ranges, strict=True):
            self._microjoules += (after - before) % whole
        self._last = now
        return self._microjoules / 1e6

    def _counts(self) -> list[int]:
        return [int(_read(file)) for file in self._files]


class Ina3221(Meter):
    """The power of rails, integrated over time by a thread that runs from ``__enter__`` to ``__exit__``."""

    def __init__(self, rails: Mapping[str, tuple[Path, Path]]) -> None:
        self.source = "INA3221, " + " + ".join(rails)
        self._rails = list(rails.values())
        self._joules = 0.0
        self._watts, self._at = self._power(), time.perf_counter()
        self._lock, self._stop = Lock(), Event()
        self._thread = Thread(target=self._watch, daemon=True)

    def joules(self) -> float:
        """Return the energy used so far, after another sample. Raises TargetError if a sensor cannot be read."""
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
            with suppress(TargetError):  # the next successful sample covers the gap
                self.joules()

    def _power(self) -> float:
        return sum(int(_read(millivolts)) * int(_read(milliamperes)) for millivolts, milliamperes in self._rails) / 1e6


def find_meter(root: Path = Path("/sys")) -> Meter:
    """Find the energy meter of this machine: RAPL (Intel and AMD) or a Jetson's INA3221.

    Args:
        root: where sysfs is mounted.

    Raises:
        TargetError: there is none, it may not be read, or it is not known which rails of the board add up to its total
            power.
    """
    zones = sorted(root.glob("class/powercap/intel-rapl:*"))
    # Only packages are added up: their parts (core, uncore, dram) are listed here too, and psys includes all of them.
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
    """Return label of each rail to its files: voltage in mV and current in mA."""
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
