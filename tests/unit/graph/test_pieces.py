"""Pieces of a model in which one activation is alive at several exits."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="cutting needs torch")

import dyce_export  # noqa: E402 - after the check for torch
import dyce_runtime  # noqa: E402


class LongSkip(torch.nn.Module):  # type: ignore[name-defined, misc]
    """The stem's output is added again at the end: every cut behind it carries two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 6, 3, padding=1)
        self.blocks = torch.nn.ModuleList(
            torch.nn.Sequential(torch.nn.Conv2d(6, 6, 3, padding=1), torch.nn.ReLU()) for _ in range(4)
        )
        self.classifier = torch.nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        start = y = self.stem(x)
        for block in self.blocks:
            y = block(y)
        return self.classifier((y + start).mean((2, 3)))


def test_an_activation_may_be_alive_at_several_exits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = LongSkip().eval()
    made = dyce_export.export(model, [1, 2, 3], tmp_path / "skip.dyce", input_size=(3, 12, 12))
    assert made.manifest.verification is not None
    assert made.manifest.verification.verdict == "passed"
    names = [name for piece in made.manifest.pieces if piece.role == "segment" for name in piece.writes]
    assert len(names) == len(set(names)) == 3 * 2 + 3
    images = torch.randn(7, 3, 12, 12)
    with dyce_runtime.load(made.path, allow_untrained=True) as session:
        for configuration in ("full", "probe"):
            session.use(configuration)
            result = session(images.numpy())
            last = result.exit == 3
            assert (result.label[last] == model(images).argmax(1).numpy()[last]).all()


class Clamped(torch.nn.Module):  # type: ignore[name-defined, misc]
    """One tensor is clamped several times, between tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 6, 3, padding=1)
        self.blocks = torch.nn.ModuleList(torch.nn.Conv2d(6, 6, 3, padding=1) for _ in range(3))
        self.classifier = torch.nn.Linear(6, 5)
        self.register_buffer("bound", torch.tensor(0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.stem(x)
        for block in self.blocks:
            y = block(y)
            clamped = [torch.clamp(y, self.bound * -n, self.bound * (n + 1)) for n in (1, 2, 3)]
            y = clamped[0] + clamped[1] * clamped[2]
        return self.classifier(y.mean((2, 3)))


def test_a_tensor_may_be_clamped_several_times(tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = dyce_export.export(Clamped().eval(), [1, 2], tmp_path / "clamped.dyce", input_size=(3, 12, 12))
    assert made.manifest.verification is not None
    assert made.manifest.verification.verdict == "passed"
