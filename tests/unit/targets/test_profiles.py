"""Devices as data: what they say fits what there is, and a machine is told from others."""

from __future__ import annotations

import pytest

from dyce_export.precision.lower import LOWER
from dyce_runtime.targets import registry
from dyce_targets.profiles import board, detect, here, profiles

BOARDS = {
    "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super": "jetson-orin-nano",
    "NVIDIA Jetson Orin NX Engineering Reference Developer Kit": "jetson-orin-nx",
    "NVIDIA Jetson AGX Orin Developer Kit": "jetson-agx-orin",
    "NVIDIA Jetson AGX Thor Developer Kit": "jetson-thor",
    "Raspberry Pi 5 Model B Rev 1.0": "arm-cpu",
    "": "arm-cpu",
}


@pytest.mark.parametrize(("name", "device"), BOARDS.items())
def test_a_board_is_known_by_its_name(name: str, device: str) -> None:
    assert detect("aarch64", name, None) == device
    # Its GPU works or not: the same board.
    assert detect("aarch64", name, "sm87" if "Orin" in name else None) == device


@pytest.mark.parametrize(
    ("capability", "device"),
    [("sm75", "rtx-20"), ("sm86", "rtx-30"), ("sm89", "rtx-40"), ("sm120", "rtx-50"), ("sm90", "server-gpu"),
     ("sm70", "x86-cpu"), (None, "x86-cpu")],
)  # fmt: skip
def test_a_pc_is_known_by_its_gpu(capability: str | None, device: str) -> None:
    assert detect("x86_64", "", capability) == device


def test_another_processor_is_none_of_them() -> None:
    assert detect("riscv64", "", None) is None


def test_every_profile_names_what_there_is() -> None:
    for name, profile in profiles().items():
        assert profile.target in registry.names(), name
        assert set(profile.precisions) <= set(LOWER), name
        assert profile.install, name
        # TensorRT takes no unsigned integers.
        assert profile.target not in ("tensorrt", "rtx") or "uint8" not in profile.precisions, name


def test_this_machine_is_one_of_them() -> None:
    assert here() in profiles()
    assert isinstance(board(), str)
