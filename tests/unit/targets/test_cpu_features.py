"""What processors say of themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from dyce_runtime.cpu_features import advice, cpu_features

CPUS = {
    "flags : sse2 avx2 fma": (),
    "flags : avx2 avx512_vnni": ("VNNI",),
    "flags\t\t: amx_tile amx_int8 amx_bf16 avx512_vnni avx512_bf16": ("VNNI", "AMX", "bf16"),
    "Features\t: fp asimd asimddp i8mm bf16": ("VNNI", "bf16", "i8mm"),
}


@pytest.mark.parametrize("line", CPUS)
def test_features_are_those_of_every_core(tmp_path: Path, line: str):
    (tmp_path / "cpuinfo").write_text(f"processor : 0\n{line}\n\nprocessor : 1\n{line}\n")
    assert cpu_features(tmp_path / "cpuinfo") == CPUS[line]
    (tmp_path / "cpuinfo").write_text(f"processor : 0\n{line}\n\nprocessor : 1\nflags : sse2\n")
    assert cpu_features(tmp_path / "cpuinfo") == ()


def test_a_system_that_does_not_tell_is_unknown(tmp_path: Path):
    assert cpu_features(tmp_path / "missing") is None
    (tmp_path / "empty").write_text("processor : 0\n")
    assert cpu_features(tmp_path / "empty") is None
    assert "does not list" in advice(None)


def test_what_follows_differs_with_what_there_is():
    assert "8-bit integers can be faster" in advice(("VNNI",))
    assert "seldom faster" in advice(())
    assert "bfloat16 can be faster" in advice(("AMX", "bf16"))
    assert "gains no time" in advice(("VNNI",))
