"""An export does not depend on what the caller has set for torch as a whole, and leaves it as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import dyce_export
from dyce_export.sources.torch_settings import usual_settings
from dyce_runtime.bundle.reader import open_bundle
from tests.integration.small import labelled
from tests.models import INPUT_SIZE, Convolutions, build


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def default_device(name: str) -> Iterator[None]:
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def fast_products() -> Iterator[None]:
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


SETTINGS: dict[str, Any] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "float64": partial(default_dtype, torch.float64),
    "float16": partial(default_dtype, torch.float16),
    "meta": partial(default_device, "meta"),
    "device around it": partial(torch.device, "meta"),
    "autocast": partial(torch.autocast, "cpu", torch.bfloat16),
    "fast products": fast_products,
}


def state() -> list[Any]:
    """Of torch as a whole."""
    return [
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_autocast_enabled("cpu"),
        torch.get_float32_matmul_precision(),
        torch.get_rng_state().tolist(),
    ]


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_inside_they_are_the_usual_ones_and_outside_what_they_were(settings: Any) -> None:
    usual = state()
    with settings():
        before = state()
        assert before != usual
        with usual_settings():
            assert state() == usual
        assert state() == before
        with pytest.raises(KeyError), usual_settings():
            raise KeyError
        assert state() == before


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return build(Convolutions)


@pytest.fixture(scope="module")
def expected(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return export(model, tmp_path_factory.mktemp("usual"))


def export(model: nn.Module, folder: Path) -> dict[str, str]:
    """Hashes of the pieces of a bundle with trained heads."""
    how: dict[str, Any] = {"mean": (0.5,), "std": (0.5,), "input_size": INPUT_SIZE, "allow_suspicious": True}
    data = labelled(folder / "data.npz")
    dyce_export.export(model, [2], folder / "b.dyce", data=data, **how)
    return {name: hash for name, hash in open_bundle(folder / "b.dyce").manifest.files.items() if "onnx" in name}


# Settings that can hold at once: an export that minds any of them differs. `make nightly` takes each alone, too.
TOGETHER = (
    ("no_grad", "float64", "fast products"),
    ("inference_mode", "float16", "autocast"),
    ("meta",),
    ("device around it",),
)


@pytest.mark.parametrize(
    "names",
    [
        *(pytest.param(names, id=" and ".join(names)) for names in TOGETHER),
        *(pytest.param((name,), id=f"{name} alone", marks=pytest.mark.slow) for name in (*TOGETHER[0], *TOGETHER[1])),
    ],
)
def test_an_export_with_training_is_the_same_under_any(
    names: tuple[str, ...], model: nn.Module, expected: dict[str, str], tmp_path: Path
) -> None:
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(SETTINGS[name]())
        before = state()
        assert export(model, tmp_path) == expected
        assert state() == before
