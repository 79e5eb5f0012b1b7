"""Checkpoints of an architecture that timm has: what is read off the weights, and what is refused."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch

from dyce_export.options import Options
from dyce_export.prepare import capture_source, prepare
from dyce_export.progress import Progress
from dyce_export.sources.inputs import InputOverrides
from dyce_export.sources.source import load_source
from dyce_runtime.errors import ModelError
from tests.unit.sources.small import Net, holds, saved, timm_weights

pytest.importorskip("timm", reason="loading models needs timm")


@pytest.mark.parametrize("arch", ["test_resnet", "timm:test_resnet"])
def test_classes_and_channels_are_read_off_the_weights(arch: str) -> None:
    weights = timm_weights("test_resnet", num_classes=7, in_chans=1)
    Path("folder").mkdir()
    source = load_source(saved(weights, "folder/best.pth"), arch=arch)
    assert (source.name, source.origin, source.weights) == ("test_resnet", "best.pth", "checkpoint")
    assert holds(source, weights)
    assert source.input_size == (1, 160, 160)
    assert source.preprocessing.mean == (0.5,)
    assert source.sha256 is not None


@pytest.mark.parametrize("arch", ["mobilenetv3_small_050", "test_vit", "deit_tiny_distilled_patch16_224", "lcnet_035"])
def test_classes_are_found_in_every_kind_of_classifier(arch: str) -> None:
    weights = timm_weights(arch, num_classes=6)
    assert holds(load_source(saved(weights), arch=arch), weights)


def test_a_checkpoint_that_names_its_architecture_needs_no_arch_and_a_given_one_wins() -> None:
    weights = timm_weights("test_resnet", num_classes=4)
    assert load_source(saved({"arch": "test_resnet", "state_dict": weights})).name == "test_resnet"
    assert load_source(saved({"arch": "resnet50", "state_dict": weights}), arch="test_resnet").name == "test_resnet"


def test_half_precision_weights_become_float32() -> None:
    weights = {name: tensor.half() for name, tensor in timm_weights("test_resnet").items()}
    source = load_source(saved(weights), arch="test_resnet")
    assert source.module is not None
    assert {parameter.dtype for parameter in source.module.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (Net().state_dict(), "names no architecture"),
        ({"arch": "net", "state_dict": Net().state_dict()}, "names the architecture 'net', which timm does not have"),
    ],
)
def test_weights_of_an_unknown_architecture_ask_for_one(content: Any, found: str) -> None:
    with pytest.raises(ModelError, match=f"model.pt holds weights and {found}") as caught:
        load_source(saved(content))
    assert "--arch" in caught.value.hint
    assert "--model" in caught.value.hint


def test_the_wrong_architecture_is_refused() -> None:
    with pytest.raises(ModelError, match=r"does not fit timm:test_vit .*cls_token \(1, 1, 64\) is missing") as caught:
        load_source(saved(timm_weights("test_resnet")), arch="test_vit")
    assert caught.value.hint == "Check --arch."


def test_weights_for_another_channel_count_than_asked_are_refused() -> None:
    with pytest.raises(ModelError, match=r"conv1.0.weight is \(\d+, 1, 3, 3\) in the file") as caught:
        load_source(
            saved(timm_weights("test_resnet", in_chans=1)), arch="test_resnet", overrides=InputOverrides((3, 160, 160))
        )
    assert "--input-size" in caught.value.hint


def test_a_transformer_trained_at_another_size_has_to_be_told() -> None:
    weights = timm_weights("test_vit", img_size=96)
    model = saved(weights)
    with pytest.raises(ModelError, match=r"pos_embed is \(1, 37, 64\) in the file, \(1, 101, 64\)") as caught:
        load_source(model, arch="test_vit")
    assert "--input-size" in caught.value.hint
    source = load_source(model, arch="test_vit", overrides=InputOverrides((3, 96, 96)))
    assert source.input_size == (3, 96, 96)
    assert holds(source, weights)
    assert source.module is not None
    assert source.module(torch.zeros(1, 3, 96, 96)).shape == (1, 1000)
    trained = saved({"state_dict": weights, "args": argparse.Namespace(model="test_vit", img_size=96)})
    assert load_source(trained).input_size == (3, 96, 96)


def test_a_transformer_is_resized_on_request_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    source = load_source(
        saved(timm_weights("test_vit")), arch="test_vit", overrides=InputOverrides(input_size=(3, 128, 128))
    )
    assert source.module is not None
    assert source.module(torch.zeros(1, 3, 128, 128)).shape == (1, 1000)
    assert "resized tensors that depend on the input size: pos_embed" in caplog.text


def test_weights_for_another_patch_size_are_never_resized() -> None:
    weights = timm_weights("vit_tiny_patch16_224", patch_size=32)
    with pytest.raises(ModelError, match=r"patch_embed.proj.weight is \(192, 3, 32, 32\) in the file"):
        load_source(saved(weights), arch="vit_tiny_patch16_224", overrides=InputOverrides(input_size=(3, 224, 224)))


def test_foreign_names_go_through_timm_s_own_filter() -> None:
    weights = timm_weights("test_convnext")
    foreign = {
        name.replace("stem.0", "downsample_layers.0.0").replace("head.fc", "head"): t for name, t in weights.items()
    }
    foreign = {
        name.replace("stem.1", "downsample_layers.0.1").replace("head.norm", "norm"): t for name, t in foreign.items()
    }
    assert foreign.keys() != weights.keys()
    assert holds(load_source(saved(foreign), arch="test_convnext"), weights)


def test_class_names_that_do_not_fit_the_model_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    weights = timm_weights("test_resnet", num_classes=3)
    fitting = saved({"state_dict": weights, "classes": ["cat", "dog", "owl"]})
    assert load_source(fitting, arch="test_resnet").class_names == ("cat", "dog", "owl")
    other = load_source(saved({"state_dict": weights, "classes": ["cat", "dog"]}), arch="test_resnet")
    prepared = prepare(capture_source(other, Progress()), [], data=None, val=None, options=Options())
    assert prepared.model.class_names is None
    assert "names 2 classes, the model has 3" in caplog.text


@pytest.mark.parametrize("prefix", ["model.", "net.backbone.", "student."])
def test_an_architecture_is_found_under_its_prefix_with_its_classes_and_channels(prefix: str) -> None:
    weights = timm_weights("test_resnet", num_classes=7, in_chans=1)
    kept = {"criterion.weight": torch.ones(7), "val_acc.correct": torch.ones(3)}
    content = {"state_dict": {**kept, **{prefix + name: tensor for name, tensor in weights.items()}}}
    source = load_source(saved(content), arch="test_resnet")
    assert holds(source, weights)
    assert source.input_size == (1, 160, 160)


def test_copies_with_other_classes_are_listed() -> None:
    student, teacher = (timm_weights("test_resnet", num_classes=classes) for classes in (7, 1000))
    content = {"student": student, "teacher": teacher}
    with pytest.raises(ModelError, match=r"holds 2 copies of timm:test_resnet that differ: student\.\*, teacher\.\*"):
        load_source(saved(content), arch="test_resnet")


def test_a_deeper_model_of_the_same_family_is_refused() -> None:
    with pytest.raises(ModelError, match=r"unexpected: \d+\): layer1.2.conv1.weight .* is not in the model"):
        load_source(saved(timm_weights("resnet34")), arch="resnet18")


@pytest.mark.parametrize(
    ("arch", "twin"), [("mobilenetv2_100", "mobilenet_v2"), ("mobilenetv3_small_100", "mobilenet_v3_small")]
)
def test_weights_of_torchvision_say_so(arch: str, twin: str) -> None:
    import torchvision

    weights = torchvision.models.get_model(twin, weights=None).state_dict()
    with pytest.raises(ModelError) as caught:
        load_source(saved(weights), arch=arch)
    assert f"torchvision's {twin}: --model torchvision.models:{twin}" in caught.value.hint
    source = load_source("model.pt", factory=f"torchvision.models:{twin}", overrides=InputOverrides((3, 64, 64)))
    assert holds(source, weights)


def test_weights_that_are_no_numbers_are_refused() -> None:
    weights = timm_weights("test_resnet")
    weights["fc.bias"] = torch.full_like(weights["fc.bias"], float("nan"))
    with pytest.raises(ModelError, match=r"of model.pt hold NaN or infinity, such as fc.bias"):
        load_source(saved(weights), arch="test_resnet")
