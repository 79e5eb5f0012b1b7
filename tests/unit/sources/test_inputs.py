"""How pictures are prepared for a model: what the user, the checkpoint and the model say, and what timm makes of it."""

from __future__ import annotations

import argparse
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dyce_export.sources.inputs import InputOverrides
from dyce_export.sources.source import from_module, load_source
from dyce_runtime.errors import ModelError, UsageError
from tests.unit.sources.small import Net, saved, timm_weights

pytest.importorskip("timm", reason="loading models needs timm")
from timm.data import create_transform, resolve_data_config  # type: ignore[attr-defined]


def test_what_the_user_says_goes_before_the_checkpoint_before_the_model() -> None:
    weights = timm_weights("test_resnet", num_classes=3)
    args = argparse.Namespace(mean=[0.1, 0.2, 0.3], crop_pct=0.8, interpolation="nearest")
    model = saved({"arch": "test_resnet", "state_dict": weights, "args": args})
    preprocessing = load_source(model, overrides=InputOverrides(interpolation="lanczos", mean=(0.7,))).preprocessing
    assert preprocessing.interpolation == "lanczos"
    assert preprocessing.mean == (0.7, 0.7, 0.7)
    assert preprocessing.resize == 200, "160 / 0.8, from the checkpoint"
    assert preprocessing.std == (0.5, 0.5, 0.5), "from the model"
    assert load_source(model).preprocessing.mean == (0.1, 0.2, 0.3)


def test_the_crop_stays_when_the_size_changes() -> None:
    preprocessing = load_source("timm:test_resnet", overrides=InputOverrides(input_size=(3, 64, 64))).preprocessing
    assert (preprocessing.crop, preprocessing.resize) == ((64, 64), 67), "0.95 of the resized edge, as for 160"


@given(
    st.integers(8, 600),
    st.integers(8, 600) | st.none(),
    st.floats(0.3, 1.0),
    st.sampled_from(["center", "squash", "border"]),
)
def test_resizing_follows_timm(height: int, width: int | None, crop_pct: float, crop_mode: str) -> None:
    module = Net()
    size = (3, height, height if width is None else width)
    module.pretrained_cfg = {"input_size": size, "crop_pct": crop_pct, "crop_mode": crop_mode}  # type: ignore[assignment]
    preprocessing = from_module(module).preprocessing
    config = resolve_data_config(pretrained_cfg=module.pretrained_cfg)  # type: ignore[no-untyped-call]
    resize, crop, _, normalise = create_transform(**config).transforms
    assert preprocessing.resize == (tuple(resize.size) if isinstance(resize.size, list | tuple) else resize.size)
    assert preprocessing.crop == tuple(crop.size)
    assert preprocessing.mean == tuple(pytest.approx(value) for value in normalise.mean.tolist())
    longest = getattr(resize, "longest", None)
    assert preprocessing.fit == {None: "stretch", 0: "cover", 1: "contain"}[longest]


@pytest.mark.parametrize(
    ("size", "mean", "resize"),
    [((3, 224, 224), (0.485, 0.456, 0.406), 256), ((1, 28, 28), (0.5,), 28), ((3, 32, 32), (0.485, 0.456, 0.406), 32)],
)
def test_what_has_to_be_assumed_is_said(
    size: tuple[int, int, int], mean: tuple[float, ...], resize: int, caplog: pytest.LogCaptureFixture
) -> None:
    preprocessing = from_module(Net(size[0]), input_size=size).preprocessing
    assert (preprocessing.mean, preprocessing.resize) == (mean, resize)
    assert f"assuming mean {mean}" in caplog.text
    assert "--mean" in caplog.text


def test_nothing_is_said_when_nothing_is_assumed(caplog: pytest.LogCaptureFixture) -> None:
    from_module(Net(), input_size=(3, 32, 32), mean=(0,), std=(1,), interpolation="bilinear", crop_pct=1)
    assert not caplog.records


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"input_size": (3, 0, 32)}, r"input size is \(3, 0, 32\); expected channels, height and width"),
        ({"input_size": (32, 32)}, "expected channels, height and width"),
        ({"std": (0.0,)}, r"std is \(0.0,\); expected positive numbers"),
        ({"crop_pct": 87.5}, "crop_pct is 87.5; expected a number from 0.01 to 1"),
        ({"interpolation": "cubic"}, "interpolation is 'cubic'; expected one of nearest, bilinear"),
        ({"input_size": (3, 32, 32), "mean": (0.5, 0.5)}, "mean has 2 values; expected one, or one for each of 3"),
        ({"crop_mode": "letterbox"}, "crop_mode is 'letterbox'; expected one of center, squash, border"),
        ({"mean": 0.5}, "mean is 0.5; expected numbers, one or one per channel"),
        ({"std": ()}, r"std is \(\); expected numbers"),
        ({"mean": (float("nan"),)}, "mean is .*; expected numbers"),
        ({"std": (float("inf"),)}, "std is .*; expected numbers"),
    ],
)
def test_impossible_overrides_are_refused(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        InputOverrides(**overrides)


def test_overrides_that_do_not_fit_the_model_are_refused() -> None:
    with pytest.raises(ModelError, match="mean has 2 values; expected one, or one for each of 3 channels") as caught:
        load_source("timm:test_resnet", overrides=InputOverrides(mean=(0.5, 0.5)))
    assert "--mean" in caught.value.hint


OF_255 = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}
OF_1 = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@pytest.mark.parametrize(
    ("mean", "std", "hint"),
    [
        (OF_255["mean"], OF_255["std"], "Divided by 255: --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225."),
        (OF_1["mean"], OF_255["std"], "Divided by 255: --std 0.229,0.224,0.225."),
        (OF_255["mean"], OF_1["std"], "Divided by 255: --mean 0.485,0.456,0.406. If the std is on the scale 0 to 255"),
        ((127.5,), (127.5,), "--mean 0.5 --std 0.5"),
        ((103.94, 116.78, 123.68), (1.0, 1.0, 1.0), "--std 0.00392157,0.00392157,0.00392157"),
        ((0.0,), (255.0,), "--std 1."),
        ((-128.0,), None, "--mean -0.50"),
    ],
)
def test_statistics_of_the_scale_to_255_are_refused_with_those_of_the_scale_to_1(
    mean: tuple[float, ...], std: tuple[float, ...] | None, hint: str
) -> None:
    with pytest.raises(UsageError, match="expected numbers on the scale 0 to 1") as caught:
        InputOverrides(mean=mean, std=std)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        (OF_1["mean"], OF_1["std"]),
        ((0.5,), (0.5,)),  # -1 to 1
        ((0.0,), (1.0,)),  # 0 to 1
        ((0.0,), (1 / 255,)),  # 0 to 255
        ((0.485, 0.456, 0.406), (1 / 255,)),  # 0 to 255, less the mean
        ((127 / 255,), (128 / 255,)),
    ],
)
def test_statistics_that_can_be_right_are_taken(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    preprocessing = from_module(Net(), input_size=(3, 32, 32), mean=mean, std=std).preprocessing
    assert (preprocessing.mean, preprocessing.std) == (mean * (3 // len(mean)), std * (3 // len(std)))


def test_statistics_of_a_checkpoint_are_checked_too() -> None:
    args = argparse.Namespace(mean=[127.5], std=[127.5])
    model = saved({"arch": "test_resnet", "state_dict": timm_weights("test_resnet", num_classes=3), "args": args})
    with pytest.raises(ModelError, match="on the scale 0 to 1") as caught:
        load_source(model)
    assert "--mean 0.5 --std 0.5" in caught.value.hint
    said = InputOverrides(mean=(0.5,), std=(0.5,))
    assert load_source(model, overrides=said).preprocessing.std == (0.5,) * 3


@pytest.mark.parametrize(
    ("crop_mode", "resize", "fit"),
    [
        (None, 36, "stretch"),
        ("center", 36, "stretch"),
        ("squash", (36, 36), "stretch"),
        ("border", (36, 36), "contain"),
    ],
)
def test_the_crop_mode_can_be_said(crop_mode: str | None, resize: int | tuple[int, int], fit: str) -> None:
    found = from_module(Net(), input_size=(3, 32, 32), mean=(0.5,), std=(0.5,), crop_pct=0.875, crop_mode=crop_mode)
    assert (found.preprocessing.resize, found.preprocessing.fit) == (resize, fit)
