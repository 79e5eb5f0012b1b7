"""No meter of this machine is read: sysfs trees stand in for those of others."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from dyce_runtime.errors import TargetError
from dyce_runtime.measure import energy
from dyce_runtime.measure.energy import find_meter

AGX_ORIN = {"VDD_GPU_SOC": (12000, 500), "VDD_CPU_CV": (12000, 250), "VIN_SYS_5V0": (5000, 800)}


def zone(root: Path, number: str, name: str, microjoules: int, whole: int = 1_000_000) -> Path:
    folder = root / f"class/powercap/intel-rapl:{number}"
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text(f"{whole}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    return folder / "energy_uj"


def sensor(root: Path, address: str, rails: dict[str, tuple[int, int]]) -> Path:
    """An INA3221; the voltage in mV and the current in mA of each of its rails."""
    folder = root / f"bus/i2c/drivers/ina3221/{address}/hwmon/hwmon1"
    folder.mkdir(parents=True)
    for channel, (label, (millivolts, milliamperes)) in enumerate(rails.items(), 1):
        (folder / f"in{channel}_label").write_text(f"{label}\n")
        (folder / f"in{channel}_input").write_text(f"{millivolts}\n")
        (folder / f"curr{channel}_input").write_text(f"{milliamperes}\n")
    (folder / "in7_label").write_text("sum of shunt voltages\n")
    return folder


# --- RAPL ------------------------------------------------------------------------------------------------------------


def test_packages_are_added_up_and_what_is_in_them_is_not_counted_again(tmp_path: Path):
    counters = {
        name: zone(tmp_path, number, name, 1000)
        for number, name in {
            "0": "package-0", "0:0": "core", "0:1": "dram", "1": "package-1-die-0", "1:0": "core", "2": "psys"
        }.items()
    }  # fmt: skip
    zone(tmp_path, "mmio", "package-0", 0).parent.rename(tmp_path / "class/powercap/intel-rapl-mmio:0")
    with find_meter(tmp_path) as meter:
        for counter in counters.values():
            counter.write_text("501000\n")
        assert meter.joules() == pytest.approx(2 * 0.5)
    assert meter.source == "RAPL, package-0 + package-1-die-0"


def test_a_counter_that_starts_again_goes_on(tmp_path: Path):
    wrapping, steady = zone(tmp_path, "0", "package-0", 900_000), zone(tmp_path, "1", "package-1", 0)
    with find_meter(tmp_path) as meter:
        for count, expected in ((100_000, 0.2), (950_000, 1.05), (50_000, 1.15)):
            wrapping.write_text(f"{count}\n")
            assert meter.joules() == pytest.approx(expected)
        steady.write_text("40000\n")
        assert meter.joules() == pytest.approx(1.19)


def test_a_counter_that_only_root_may_read_is_named_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    counter = zone(tmp_path, "0", "package-0", 0)
    read = Path.read_text

    def deny(path: Path, **options: str) -> str:  # these tests may run as root, whom no mode keeps out
        if path == counter:
            raise PermissionError(13, os.strerror(13))
        return read(path, **options)

    monkeypatch.setattr(Path, "read_text", deny)
    with pytest.raises(TargetError, match=r"intel-rapl:0/energy_uj cannot be read: Permission denied") as caught:
        find_meter(tmp_path)
    assert "sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj" in caught.value.hint


# --- Jetson ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sensors", "watts", "source"),
    [
        ({"1-0040": {"VDD_IN": (5000, 1200), "VDD_CPU_GPU_CV": (5000, 400), "VDD_SOC": (5000, 300)}}, 6, "VDD_IN"),
        ({"6-0040": {"POM_5V_IN": (5000, 600), "POM_5V_GPU": (5000, 100), "POM_5V_CPU": (5000, 200)}}, 3, "POM_5V_IN"),
        (
            {"1-0040": AGX_ORIN, "1-0041": {"NC": (0, 0), "VDDQ_VDD2_1V8AO": (5000, 300)}},
            6 + 3 + 4,
            "VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0",
        ),
    ],
    ids=["Orin NX", "Nano", "AGX Orin"],
)
def test_rails_that_make_up_the_whole_are_summed_up_over_time(tmp_path: Path, monkeypatch, sensors, watts, source):
    for address, rails in sensors.items():
        sensor(tmp_path, address, rails)
    now = [10.0]
    monkeypatch.setattr(energy, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    with find_meter(tmp_path) as meter:
        now[0] += 2.5
        assert meter.joules() == pytest.approx(2.5 * watts)
    assert meter.source == f"INA3221, {source}"


@pytest.fixture
def current(tmp_path: Path) -> Path:
    """The current of a board that draws nothing yet, at 5 V."""
    return sensor(tmp_path, "1-0040", {"VDD_IN": (5000, 0)}) / "curr1_input"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The clock of the meter: it stands still until a test turns it."""
    clock = SimpleNamespace(now=10.0)
    monkeypatch.setattr(energy, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


def draw_for_a_moment(meter: energy.Ina3221, current: Path, clock: SimpleNamespace) -> None:
    """10 W for 0.3 seconds; the meter is not asked, and has to look by itself."""
    for milliamperes in (2000, 0):
        new = current.with_name("new")
        new.write_text(f"{milliamperes}\n")
        new.replace(current)
        while meter._watts != 5 * milliamperes / 1000:
            time.sleep(0.005)
        clock.now += 0.3


def test_power_that_changes_is_seen_between_two_looks(tmp_path: Path, current: Path, clock: SimpleNamespace):
    with find_meter(tmp_path) as meter:
        draw_for_a_moment(meter, current, clock)
        assert meter.joules() > 1


def test_a_sensor_that_fails_for_a_moment_does_not_end_the_count(
    tmp_path: Path, current: Path, clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
):
    failures: list[Path] = []
    read = energy._read

    def counted(path: Path) -> str:
        try:
            return read(path)
        except TargetError:
            failures.append(path)
            raise

    monkeypatch.setattr(energy, "_read", counted)
    with find_meter(tmp_path) as meter:
        away = current.rename(current.with_name("away"))
        while not failures:  # until the meter has looked by itself
            time.sleep(0.005)
        with pytest.raises(TargetError, match="curr1_input cannot be read"):
            meter.joules()
        away.rename(current)
        draw_for_a_moment(meter, current, clock)
        assert meter.joules() > 1


# --- none ------------------------------------------------------------------------------------------------------------


def test_without_a_meter_it_says_where_it_looked_and_what_to_do(tmp_path: Path):
    zone(tmp_path, "0", "psys", 0)
    with pytest.raises(TargetError, match=r"class/powercap/intel-rapl:\* .* no power sensor in .*ina3221") as caught:
        find_meter(tmp_path)
    assert "Virtual machines and containers hide it" in caught.value.hint


def test_rails_that_may_not_be_all_are_named_and_not_summed_up(tmp_path: Path):
    sensor(tmp_path, "1-0040", {name: AGX_ORIN[name] for name in ("VDD_GPU_SOC", "VIN_SYS_5V0")})
    with pytest.raises(TargetError, match=r"not known to add up to the whole \(VDD_GPU_SOC, VIN_SYS_5V0\)"):
        find_meter(tmp_path)
