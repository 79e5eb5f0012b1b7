"""Exported programs as sources: what is taken, what is refused, and that no code in them runs unasked."""

from __future__ import annotations

import io
import os
import re
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dyce_export.sources.inputs import InputOverrides
from dyce_export.sources.source import load_source
from dyce_runtime.errors import ModelError
from tests.unit.sources.small import IMAGE, Net, saved

pytest.importorskip("timm", reason="loading models needs timm")


def exported(module: nn.Module, example: torch.Tensor, axes: Any, name: str = "model.pt2") -> str:
    program = torch.export.export(module.eval(), (example,), dynamic_shapes=(axes,))
    torch.export.save(program, name)
    return name


DYNAMIC = torch.export.Dim.DYNAMIC


def test_an_exported_program_is_taken_as_it_is() -> None:
    net = Net()
    model = exported(net, torch.zeros(2, 3, 32, 32), {0: DYNAMIC}, "net.pt2")
    source = load_source(model, trust_pickle=True, overrides=InputOverrides(crop_pct=0.5))
    assert (source.name, source.origin, source.weights, source.module) == ("net", "net.pt2", "checkpoint", None)
    assert (source.input_size, source.preprocessing.resize) == ((3, 32, 32), 64)
    assert source.sha256 is not None
    assert source.program is not None
    assert torch.equal(source.program.module()(IMAGE), net(IMAGE))


class RunsCode:
    """Unpickling it makes a folder."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("it ran",)


def with_pickled_code(member: str, content: bytes) -> bytes:
    pickled = io.BytesIO()
    torch.save(RunsCode(), pickled)
    return pickled.getvalue() if member.endswith("sample_inputs/model.pt") else content


def with_code_for_a_size(member: str, content: bytes) -> bytes:
    code = rb"""'expr_str': "__import__('os').mkdir('it ran') or 3" """.replace(b"'expr_str'", b'"expr_str"')
    return re.sub(rb'"expr_str": "[^"]*"', code, content, count=1) if member.endswith("models/model.json") else content


@pytest.mark.parametrize("change", [with_pickled_code, with_code_for_a_size])
def test_nothing_in_a_program_runs_unless_it_is_trusted(change: Callable[[str, bytes], bytes]) -> None:
    model = exported(Net(), torch.zeros(2, 3, 32, 32), {0: DYNAMIC}, "net.pt2")
    with zipfile.ZipFile(model) as harmless, zipfile.ZipFile("evil.pt2", "w") as evil:
        for member in harmless.namelist():
            evil.writestr(member, change(member, harmless.read(member)))
    for file in (model, "evil.pt2"):
        with pytest.raises(ModelError, match=f"{file} is an exported program, and like pickles those run") as caught:
            load_source(file)
        assert "--trust-pickle" in caught.value.hint
    assert not Path("it ran").exists()
    with suppress(ModelError):
        load_source("evil.pt2", trust_pickle=True)
    assert Path("it ran").exists(), "torch no longer runs what a program holds: perhaps it need not be trusted any more"


@pytest.mark.parametrize(
    ("example", "axes", "message", "hint"),
    [
        (
            torch.zeros(4, 3, 32, 32),
            {},
            "has a fixed batch of 4; expected a dynamic batch axis",
            "torch.zeros(2, 3, 32, 32)",
        ),
        (torch.zeros(2, 3, 32, 32), {0: DYNAMIC, 2: DYNAMIC, 3: DYNAMIC}, "takes images of any size", ""),
        (torch.zeros(2, 3, 32, 32).double(), {0: DYNAMIC}, "expected one batch of images, float32", ""),
    ],
    ids=["fixed batch", "any size", "double"],
)
def test_programs_that_cannot_be_cut_are_refused(example: torch.Tensor, axes: Any, message: str, hint: str) -> None:
    model = exported(Net().to(example.dtype), example, axes)
    with pytest.raises(ModelError, match=message) as caught:
        load_source(model, trust_pickle=True)
    assert hint in caught.value.hint


def test_a_program_of_two_inputs_is_refused() -> None:
    class Sum(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return a + b

    program = torch.export.export(Sum(), (torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8)))
    torch.export.save(program, "sum.pt2")
    with pytest.raises(ModelError, match=r"takes 2 inputs .*; expected one batch of images"):
        load_source("sum.pt2", trust_pickle=True)


def test_a_program_s_size_cannot_be_changed() -> None:
    model = exported(Net(), torch.zeros(2, 3, 32, 32), {0: DYNAMIC})
    with pytest.raises(ModelError, match=r"takes an input of \(3, 32, 32\), which cannot be changed to \(3, 64, 64\)"):
        load_source(model, trust_pickle=True, overrides=InputOverrides(input_size=(3, 64, 64)))


def test_files_are_told_by_their_content_and_not_by_their_name(tmp_path: Path) -> None:
    Path("model.pt2").write_bytes(b"hello")
    with pytest.raises(ModelError, match=r"model\.pt2 is truncated or not an exported program"):
        load_source("model.pt2")
    saved(Net().state_dict(), "model.pt2")
    with pytest.raises(ModelError, match="holds weights and names no architecture"):
        load_source("model.pt2")
    program = exported(Net(), torch.zeros(2, 3, 32, 32), {0: DYNAMIC})
    Path(program).rename("model.pt")
    assert load_source("model.pt", trust_pickle=True).program is not None
