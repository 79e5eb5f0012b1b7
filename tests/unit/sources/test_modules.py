"""Models that are modules in Python: given, built by a factory, or pickled whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dyce_export.inputs import InputOverrides
from dyce_export.sources import from_module, load_source
from dyce_runtime.errors import ModelError
from tests.unit.sources.small import IMAGE, Net, holds, saved

timm: Any = pytest.importorskip("timm", reason="loading models needs timm")

SIZE = InputOverrides(input_size=(3, 32, 32))

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
