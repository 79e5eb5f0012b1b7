from __future__ import annotations

import argparse
import logging
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dyce_export.inputs import InputOverrides
from dyce_export.sources import Source, from_module, load_source
from dyce_runtime.errors import ModelError, UsageError

timm: Any = pytest.importorskip("timm", reason="loading models needs timm")

IMAGE = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)


class Net(nn.Module):
    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3)
        self.fc = nn.Linear(4, 5)
        self.drop = nn.Dropout()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(self.drop(self.conv(x).mean((2, 3))))
        return logits


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Empty caches and no network, whatever this machine has."""

    def refuse(*_: Any) -> None:
        raise AssertionError("went to the network")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "torch"))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.WARNING, logger="dyce_export")


def saved(content: Any, name: str = "model.pt") -> str:
    torch.save(content, name)
    return name


def timm_weights(name: str, **options: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    weights: dict[str, torch.Tensor] = timm.create_model(name, **options).state_dict()
    return weights


def holds(source: Source, weights: dict[str, torch.Tensor]) -> bool:
    assert source.module is not None
    own = source.module.state_dict()
    return own.keys() == weights.keys() and all(torch.equal(own[name], weights[name]) for name in own)


# timm:NAME


def test_a_timm_model_without_cached_weights_is_random_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    source = load_source("timm:test_resnet")
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    again = load_source("timm:test_resnet")
    assert (source.name, source.origin, source.weights) == ("test_resnet", "timm:test_resnet", "random")
    assert (source.sha256, source.class_names) == (None, None)
    assert "RANDOM" in caplog.text
    assert "timm/test_resnet.r160_in1k" in caplog.text
    assert source.module is not None
    assert again.module is not None
    assert holds(source, again.module.state_dict()), "two exports must give the same bundle"
    assert torch.equal(state, torch.random.get_rng_state()), "the caller's random numbers were disturbed"


def test_a_model_is_returned_frozen_in_eval_mode(caplog: pytest.LogCaptureFixture) -> None:
    module = load_source("timm:test_resnet").module
    assert module is not None
    assert not any(part.training for part in module.modules())
    assert not any(parameter.requires_grad for parameter in module.parameters())


def hf_cache(tmp_path: Path, repository: str, name: str) -> Path:
    folder = tmp_path / "hf" / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    return folder / "snapshots" / "abc" / name


def test_pretrained_weights_come_from_the_hugging_face_cache(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights = timm_weights("test_resnet")
    save_file(weights, hf_cache(tmp_path, "timm/test_resnet.r160_in1k", "model.safetensors"))
    source = load_source("timm:test_resnet.r160_in1k")
    assert source.weights == "pretrained"
    assert source.origin == "timm:test_resnet.r160_in1k"
    assert holds(source, weights)
    assert source.sha256 is not None
    assert source.class_names is not None
    assert source.class_names[0] == "tench, Tinca tinca"
    assert len(set(source.class_names)) == 1000, "a name must lead to one class"
    assert not caplog.records


def test_pretrained_weights_come_from_the_torch_hub_cache(tmp_path: Path) -> None:
    (tmp_path / "torch" / "checkpoints").mkdir(parents=True)
    weights = timm_weights("mobilenetv3_small_050")
    torch.save(weights, tmp_path / "torch" / "checkpoints" / "mobilenetv3_small_050_lambc-4b7bbe87.pth")
    source = load_source("timm:mobilenetv3_small_050")
    assert source.weights == "pretrained"
    assert holds(source, weights)


def test_damaged_cached_weights_are_an_error_and_not_random_weights(tmp_path: Path) -> None:
    hf_cache(tmp_path, "timm/test_resnet.r160_in1k", "model.safetensors").write_bytes(b"half a fi")
    with pytest.raises(ModelError, match="timm cannot build test_resnet"):
        load_source("timm:test_resnet")


@pytest.mark.parametrize(
    ("model", "message", "hint"),
    [
        ("timm:resnet_18", "has no model named 'resnet_18'", "resnet18"),
        ("timm:zzz", "has no model named 'zzz'", "timm.list_models"),
        ("timm:resnet18.nope", "resnet18 has no weights tagged 'nope'; its tags are: a1_in1k", ""),
        ("timm:vit_small_patch14_dinov2", "vit_small_patch14_dinov2 has no classifier", "Train a classifier"),
        ("resnet18", "there is no file resnet18, and it does not begin with timm:", "Did you mean timm:resnet18?"),
        ("nope.pt", "there is no file nope.pt, and it does not begin with timm:", "timm:NAME"),
    ],
)
def test_unknown_names_lead_to_known_ones(model: str, message: str, hint: str) -> None:
    with pytest.raises(ModelError) as caught:
        load_source(model)
    assert message in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("former", "current"),
    [("gluon_resnet18_v1b", "resnet18.gluon_in1k"), ("gluon_resnet18_v1b.a1_in1k", "resnet18.a1_in1k")],
)
def test_a_former_name_leads_to_the_current_one_and_says_so(
    former: str, current: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="dyce_export")
    source = load_source(f"timm:{former}")
    assert (source.name, source.origin, source.weights) == (current, f"timm:{current}", "random")
    notes = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
    assert notes == [f"timm:{former} is now called {current}"]
    assert f"timm/{current}" in caplog.text


@pytest.mark.parametrize("how", ["arch", "file"])
def test_a_checkpoint_may_have_a_former_name(how: str) -> None:
    weights = timm_weights("resnet18", num_classes=4)
    content = {"state_dict": weights, **({"arch": "gluon_resnet18_v1b"} if how == "file" else {})}
    source = load_source(saved(content), arch="timm:gluon_resnet18_v1b" if how == "arch" else None)
    assert source.name == "resnet18.gluon_in1k"
    assert holds(source, weights)


def test_a_removed_model_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("timm.models.get_deprecated_models", lambda: {"gluon_resnet18_v1b": None})
    with pytest.raises(ModelError, match=r"timm \S+ has removed the model 'gluon_resnet18_v1b'"):
        load_source("timm:gluon_resnet18_v1b")


def test_a_timm_without_former_names_is_an_error_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("timm.models.get_deprecated_models")
    with pytest.raises(ModelError, match="no configuration for it; it may be a former name") as caught:
        load_source("timm:gluon_resnet18_v1b")
    assert "list_models" in caught.value.hint


def test_a_size_that_timm_cannot_build_is_named() -> None:
    message = "timm cannot build xcit_nano_12_p16_224 for an input of 3x100x100: AssertionError: `patch_size` should"
    with pytest.raises(ModelError, match=message):
        load_source("timm:xcit_nano_12_p16_224", overrides=InputOverrides((3, 100, 100)))


# Checkpoints with a timm architecture


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
    assert "resized what depends on the input size: pos_embed" in caplog.text


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
    other = saved({"state_dict": weights, "classes": ["cat", "dog"]})
    assert load_source(other, arch="test_resnet").class_names is None
    assert "names 2 classes, the model has 3" in caplog.text


# Preprocessing


def test_a_module_is_copied_and_stays_as_it_is() -> None:
    module = Net().half().train()
    source = from_module(module, input_size=(3, 32, 32), name="mine", class_names=("a", "b", "c", "d", "e"))
    assert (source.name, source.weights, source.class_names) == ("mine", "module", ("a", "b", "c", "d", "e"))
    assert source.origin == f"module {Net.__module__}:Net"
    assert source.module is not None
    assert not source.module.training
    assert source.module(IMAGE).dtype == torch.float32
    assert module.training
    assert module.fc.weight.requires_grad
    assert module.fc.weight.dtype == torch.float16


def test_a_module_without_a_size_asks_for_it() -> None:
    with pytest.raises(ModelError, match="size of the model's input is not known") as caught:
        from_module(Net())
    assert "--input-size" in caught.value.hint


def test_only_modules_are_modules() -> None:
    with pytest.raises(ModelError, match=r"expected a torch\.nn\.Module, got dict"):
        from_module({}, input_size=(3, 32, 32))  # type: ignore[arg-type]


def test_a_module_that_cannot_be_copied_says_why() -> None:
    module = Net()
    module.cached = module.fc.weight * 2
    with pytest.raises(ModelError, match="the module cannot be copied"):
        from_module(module, input_size=(3, 32, 32))


FACTORIES = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))

    def forward(self, x):
        return self.model(x)

def build():
    return Net()

def needs(classes):
    return Net()

def fails():
    raise ZeroDivisionError("no data")

def weights():
    return Net().state_dict()

ready = Net()
number = 3
"""


@pytest.fixture
def my_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the working directory, and only there, under a name that no other test uses."""
    name = f"models_of_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(FACTORIES)
    return name


SIZE = InputOverrides(input_size=(3, 32, 32))


@pytest.mark.parametrize("name", ["build", "Net", "ready"])
@pytest.mark.parametrize("model", [None, ""])
def test_a_factory_in_the_working_directory_is_used_as_it_is(my_models: str, name: str, model: str | None) -> None:
    source = load_source(model, factory=f"{my_models}:{name}", overrides=SIZE)
    assert (source.name, source.origin, source.weights) == (name, f"module {my_models}:{name}", "module")
    assert source.module is not None
    assert source.module(IMAGE).shape == (1, 5)
    assert source.sha256 is None


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_a_checkpoint_loads_into_what_the_factory_builds(my_models: str, prefix: str) -> None:
    built = load_source(None, factory=f"{my_models}:build", overrides=SIZE).module
    assert built is not None
    weights = {name: torch.full_like(tensor, 3) for name, tensor in built.state_dict().items()}
    model = saved({prefix + name: tensor for name, tensor in weights.items()})
    source = load_source(model, factory=f"{my_models}:build", overrides=SIZE)
    assert (source.name, source.origin, source.weights) == ("build", "model.pt", "checkpoint")
    assert holds(source, weights)
    assert source.sha256 is not None


def test_a_checkpoint_that_does_not_fit_the_factory_is_refused(my_models: str) -> None:
    with pytest.raises(ModelError, match=r"does not fit .*:build .*0.weight \(4, 3, 3, 3\) is missing") as caught:
        load_source(saved(Net().state_dict()), factory=f"{my_models}:build", overrides=SIZE)
    assert "factory" in caught.value.hint


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("no_such_package.models:build", "cannot import .*ModuleNotFoundError: No module named 'no_such_package'"),
        ("{}:nothing", "has no 'nothing'"),
        ("{}:number", "is a int; expected a callable or a module"),
        ("{}:fails", "raised ZeroDivisionError: no data"),
        ("{}:needs", "raised TypeError: .*classes"),
        ("{}:weights", "returned a .*Dict; expected a torch.nn.Module"),
    ],
)
def test_factory_mistakes_are_named(my_models: str, factory: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_source(None, factory=factory.format(my_models), overrides=SIZE)


def test_a_factory_whose_module_is_broken_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken_models.py").write_text("def build(:\n")
    with pytest.raises(ModelError, match=r"cannot import .broken_models.*SyntaxError"):
        load_source(None, factory="broken_models:build", overrides=SIZE)


def test_a_whole_module_loads_with_trust_or_gives_its_weights_to_an_architecture() -> None:
    model = saved(Net(), "whole.pt")
    source = load_source(model, trust_pickle=True, overrides=SIZE)
    assert (source.name, source.origin, source.weights) == ("whole", "whole.pt", "checkpoint")
    assert isinstance(source.module, Net)
    torch.manual_seed(1)
    resnet = timm.create_model("test_resnet", num_classes=3)
    source = load_source(saved(resnet), trust_pickle=True, arch="test_resnet")
    assert source.name == "test_resnet"
    assert holds(source, resnet.state_dict())


# Exported programs


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        (None, {}, "no model was named"),
        ("model.pt", {"arch": "resnet18", "factory": "a:b"}, "--arch and --model both name the architecture"),
        ("timm:resnet18", {"arch": "resnet50"}, "timm:resnet18 names its own architecture"),
        ("timm:resnet18", {"factory": "a:b"}, "timm:resnet18 names its own architecture"),
        ("net.pt2", {"arch": "resnet50"}, "net.pt2 names its own architecture"),
        (None, {"factory": "models"}, "expected PACKAGE.MODULE:CALLABLE"),
    ],
)
def test_arguments_that_do_not_fit_together_are_refused(model: Any, arguments: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_source(model, **arguments)
