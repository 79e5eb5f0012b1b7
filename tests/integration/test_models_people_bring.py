"""A trial: what people bring either works from end to end, or is refused in a few lines that say what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image

import dyce_export
from dyce_export.cli import console
from dyce_export.verification.probes import synthetic_images
from dyce_runtime import load
from dyce_runtime.errors import DataError, DyceError

pytest.importorskip("transformers", reason="the trial needs transformers")

from tests.integration import brought

SMALL = (3, brought.EDGE, brought.EDGE)
MEDIUM = (3, 64, 64)

WORKS: dict[str, tuple[int, int, int]] = {
    "resnet": MEDIUM,
    "mobilenet": MEDIUM,
    "efficientnet": SMALL,
    "googlenet": MEDIUM,
    "inception": (3, 80, 80),
    "squeezenet": MEDIUM,
    "vision_transformer": SMALL,
    "swin": SMALL,
    "hf_vit": SMALL,
    "hf_dinov2": SMALL,
    "hf_convnext": SMALL,
    "hf_swin": SMALL,
    "plain": SMALL,
    "spectrogram": (1, 64, 101),
    "four_channels": (4, brought.EDGE, brought.EDGE),
    "squeezed": SMALL,
    "with_features": SMALL,
    "changes_its_input": SMALL,
    "reads_again": SMALL,
    "sequence_first": SMALL,
    "recurrent": (1, brought.EDGE, 64),
    "mixed_precision": SMALL,
    "half_precision": SMALL,
    "brain_float": SMALL,
    "parallel": SMALL,
    "compiled": SMALL,
    "averaged": SMALL,
    "ema": SMALL,
    "pruned": SMALL,
    "weight_normed": SMALL,
}

# Code of the error and words of its message.
REFUSED: dict[str, tuple[str, str]] = {
    "detector": ("capture", "is a detector"),
    "segmenter": ("capture", "a segmenter"),
    "unet": ("capture", "a segmenter"),
    "hf_segmenter": ("capture", "a segmenter"),
    "hf_text": ("capture", "is a text model"),
    "two_inputs": ("capture", "takes 2 inputs (x, age)"),
    "lazy": ("model", "has no weights yet"),
    "scripted": ("model", "is TorchScript"),
    "dropout_always_on": ("capture", "answers are random"),
    "statistics_of_the_batch": ("capture", "depends on the other pictures of its batch, first in blocks.1.norm"),
    "another_size": ("capture", "fails on images of 3x64x64"),
    "one_logit": ("task", "one output"),
    "regression": ("task", "one output"),
    "multi_label": ("task", "multi-label"),
    "hf_multi_label": ("task", "multi_label_classification"),
    "embedding": ("task", "embedding"),
    "branching": ("capture", "decides while it runs what it computes: cond in the model itself"),
    "deformable": ("capture", "DeformConv in blocks.1.conv"),
    "double_precision": ("capture", "onnxruntime cannot run the exported model"),
    "exact_median": ("capture", "no ONNX form of aten.median.dim"),
}


def answered(model: Any, images: torch.Tensor) -> np.ndarray:
    """What the user's own model answers, computed in float32."""
    with torch.no_grad():
        output = model.float()(images.clone())
    if isinstance(output, dict):
        output = output["logits"]
    return getattr(output, "logits", output).numpy()


# As one of the others, only larger.
LARGE = {"googlenet", "inception", "squeezenet", "hf_swin", "hf_dinov2", "averaged"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in WORKS]
)
def test_a_model_works_from_end_to_end(name: str, tmp_path: Path) -> None:
    model, size = getattr(brought, name)(), WORKS[name]
    dyce_export.export(model, [2], tmp_path / "model.dyce", input_size=size)
    images = synthetic_images(3, size, seed=3)
    expected = answered(model, images)
    with load(tmp_path / "model.dyce", threads=1) as session:
        found = np.concatenate([session(images[:1].numpy()).logits, session(images[1:].numpy()).logits])
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_pictures_of_16_bits_are_refused_as_png_and_work_as_arrays_of_floats(tmp_path: Path) -> None:
    model, size = brought.spectrogram(), WORKS["spectrogram"]
    how: dict[str, Any] = {"mean": (0.5,), "std": (0.25,), "interpolation": "bilinear", "crop_pct": 1.0}
    dyce_export.export(model, [2], tmp_path / "model.dyce", input_size=size, **how)
    pixels = np.random.default_rng(0).integers(0, 1 << 16, size[1:], dtype=np.uint16)
    Image.fromarray(pixels).save(tmp_path / "scan.png")
    np.save(tmp_path / "scan.npy", pixels / 65535)
    prepared = torch.from_numpy(((pixels / 65535 - 0.5) / 0.25).astype(np.float32))
    expected = answered(model, prepared[None, None])
    with load(tmp_path / "model.dyce", threads=1) as session:
        with pytest.raises(DataError, match="over 8 bits") as caught:
            session.preprocess([tmp_path / "scan.png"])
        found = session(session.preprocess([tmp_path / "scan.npy"])).logits
    assert "floats" in caught.value.hint
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def failing(error: DyceError) -> typer.Typer:
    """A command that ends with this error: how it prints it needs no second export."""
    app = typer.Typer()

    @app.command()
    def command() -> None:
        raise error

    return app


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_image_classifier_is_refused_in_a_few_lines(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, words = REFUSED[name]
    size = MEDIUM if name in ("another_size", "embedding", "segmenter") else SMALL
    with pytest.raises(DyceError) as caught:
        dyce_export.export(getattr(brought, name)(), [2], tmp_path / "model.dyce", input_size=size)
    assert (caught.value.code, words in caught.value.message) == (code, True), caught.value.message

    capsys.readouterr()
    assert console.run(failing(caught.value), "dyce-export", []) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert words in printed.err
    assert len(printed.err.splitlines()) <= 5, printed.err
    assert list(tmp_path.iterdir()) == []
