"""Models that are modules in Python: given, built by a factory, or pickled whole."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel

from dyce_export.sources.inputs import InputOverrides
from dyce_export.sources.source import from_module, load_source
from dyce_export.sources.task import check_declared
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


# --- what training scripts put around a network, and into it ---------------------------------------------------------

SIZE_OF_NET = (3, 32, 32)


def averaged(module: nn.Module) -> nn.Module:
    from timm.utils import ModelEmaV3

    return ModelEmaV3(module)  # type: ignore[no-untyped-call]


WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "torch.compile": lambda module: torch.compile(module, backend="eager"),
    "AveragedModel": AveragedModel,
    "ModelEmaV3": averaged,
    "two of them": lambda module: nn.DataParallel(AveragedModel(module)),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_network_is_taken_out_of_its_wrapper_and_that_is_said(
    wrap: Callable[[nn.Module], nn.Module], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="dyce_export")
    net = Net().eval()
    source = from_module(wrap(net), input_size=SIZE_OF_NET)
    assert isinstance(source.module, Net)
    assert source.name == "Net"
    assert torch.equal(source.module(IMAGE), net(IMAGE))
    assert "is a wrapper: exporting the Net inside it" in caplog.text


def test_a_factory_may_return_a_wrapper(my_models: str, tmp_path: Path) -> None:
    with (tmp_path / f"{my_models}.py").open("a") as file:
        file.write("\ndef parallel():\n    return nn.DataParallel(Net())\n")
    source = load_source(None, factory=f"{my_models}:parallel", overrides=SIZE)
    assert type(source.module).__name__ == "Net"


def test_data_parallel_inside_a_network_runs_on_the_cpu() -> None:
    net = Net().eval()
    inside = nn.DataParallel(net)
    inside.device_ids = [0, 1]  # as on a machine with two GPUs
    source = from_module(nn.Sequential(inside), input_size=SIZE_OF_NET)
    assert source.module is not None
    assert torch.equal(source.module(IMAGE), net(IMAGE))
    assert inside.device_ids == [0, 1]


def pruned(net: Net) -> None:
    prune.l1_unstructured(net.conv, "weight", 0.5)
    prune.random_structured(net.conv, "weight", 0.3, dim=0)
    prune.l1_unstructured(net.fc, "bias", 0.5)


def normed(net: Net) -> None:
    nn.utils.weight_norm(net.conv)
    net.train()
    nn.utils.spectral_norm(net.fc)


def parametrized(net: Net) -> None:
    parametrizations.weight_norm(net.conv)
    parametrizations.spectral_norm(net.fc)


@pytest.mark.parametrize("change", [pruned, normed, parametrized])
def test_weights_that_are_computed_when_the_module_runs_are_kept(change: Callable[[Net], None]) -> None:
    net = Net()
    change(net)
    net(IMAGE)  # pruned and normed weights are no parameters from here on
    expected, names = net.eval()(IMAGE), set(net.state_dict())
    source = from_module(net, input_size=SIZE_OF_NET)
    assert source.module is not None
    torch.testing.assert_close(source.module(IMAGE), expected)
    assert set(source.module.state_dict()) == {"conv.weight", "conv.bias", "fc.weight", "fc.bias"}
    assert set(net.state_dict()) == names
    assert torch.equal(net(IMAGE), expected)


def test_what_is_no_weight_and_cannot_be_copied_is_shared() -> None:
    net = Net().eval()
    net.lock, net.stream = threading.Lock(), (number for number in range(3))  # type: ignore[assignment]
    net.cached = [net.fc.weight * 2]  # type: ignore[assignment]
    source = from_module(net, input_size=SIZE_OF_NET)
    assert source.module is not None
    assert source.module.lock is net.lock
    assert source.module.cached[0] is not net.cached[0]  # type: ignore[index]
    assert torch.equal(source.module(IMAGE), net(IMAGE))


def test_weights_that_a_module_lists_once_more_stay_its_weights() -> None:
    source = from_module(nn.Sequential(nn.Flatten(), nn.LSTM(3072, 4)).half(), input_size=SIZE_OF_NET)
    assert source.module is not None
    lstm = source.module[1]  # type: ignore[index]
    assert isinstance(lstm.weight_ih_l0, nn.Parameter)
    assert lstm._flat_weights[0] is lstm.weight_ih_l0


def test_a_compiled_forward_runs_the_copy() -> None:
    net = Net().eval()
    net.forward = torch.compile(net.forward, backend="eager")  # type: ignore[method-assign]
    source = from_module(net.half(), input_size=SIZE_OF_NET)
    assert source.module is not None
    assert source.module(IMAGE).dtype == torch.float32
    assert net.fc.weight.dtype == torch.float16


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_of_any_precision_become_float32(dtype: torch.dtype) -> None:
    net = Net().to(dtype)
    net.scale = torch.ones(3, dtype=dtype)
    source = from_module(net, input_size=SIZE_OF_NET)
    assert source.module is not None
    assert source.module(IMAGE).dtype == torch.float32
    assert source.module.scale.dtype == torch.float32  # type: ignore[union-attr]


def test_an_eval_that_returns_nothing_does_no_harm() -> None:
    class Odd(Net):
        def eval(self) -> Odd:
            super().eval()
            return None  # type: ignore[return-value]

        @property
        def pretrained_cfg(self) -> dict[str, Any]:
            raise KeyError("not there")

        num_classes = config = pretrained_cfg

    source = from_module(Odd(), input_size=SIZE_OF_NET)
    assert source.module is not None
    assert not source.module.drop.training  # type: ignore[union-attr]
    check_declared(source.module)


def lazy() -> nn.Module:
    net = Net()
    net.fc = nn.LazyLinear(5)
    return net


def quantised() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(Net(), {nn.Linear})


def partly_scripted() -> nn.Module:
    return nn.Sequential(torch.jit.script(Net()))


class Uncopyable(Net):
    def __deepcopy__(self, memo: dict[int, Any]) -> Uncopyable:
        raise RuntimeError("there can be only one")


class TrainsAlways(Net):
    def train(self) -> None:  # type: ignore[override]
        pass


@pytest.mark.parametrize(
    ("make", "message", "hint"),
    [
        (lambda: torch.jit.script(Net()), r"this is TorchScript \(Net\)", "state_dict()"),
        (lambda: torch.jit.trace(Net().eval(), IMAGE), r"this is TorchScript \(Net\)", "state_dict()"),
        (partly_scripted, r"its part 0 is TorchScript \(Net\)", "state_dict()"),
        (lazy, r"its part fc \(LazyLinear\) has no weights yet: it is lazy", "Run the model once"),
        (lambda: Net().to("meta"), r"its part conv \(Conv2d\) has no values for 'weight': .* meta device", "to_empty"),
        (quantised, r"its part fc \(Linear\) is quantised already", "--precision int8"),
        (Uncopyable, "cannot be copied: RuntimeError: there can be only one", "parameters or buffers"),
        (TrainsAlways, "cannot be made ready for inference on a CPU: TypeError", "module.eval"),
        (lambda: Net, r"expected a torch\.nn\.Module, got type", "Net is a class"),
        (lambda: Net().state_dict(), r"expected a torch\.nn\.Module, got OrderedDict", "Load the weights"),
    ],
    ids=["scripted", "traced", "partly", "lazy", "meta", "quantised", "uncopyable", "eval", "class", "weights"],
)
def test_what_cannot_be_exported_is_called_what_it_is(make: Callable[[], Any], message: str, hint: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        from_module(make(), input_size=SIZE_OF_NET)
    assert hint in caught.value.hint


def test_a_script_that_ends_the_program_when_it_is_imported_is_named(tmp_path: Path) -> None:
    (tmp_path / "train_script.py").write_text("import sys\nsys.exit(2)\n")
    with pytest.raises(ModelError, match=r"cannot import 'train_script' .*SystemExit: 2") as caught:
        load_source(None, factory="train_script:build", overrides=SIZE)
    assert "__main__" in caught.value.hint


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ({0: "cat", 1: "dog"}, ("cat", "dog")),
        ({0: "LABEL_0", 1: "LABEL_1"}, None),
        ({1: "cat", 2: "dog"}, None),
        ({}, None),
        (["cat", "dog"], None),
        (None, None),
    ],
)
def test_names_of_classes_are_read_from_the_configuration_of_a_transformer(labels, names):
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    module.config = SimpleNamespace(id2label=labels)
    assert from_module(module, input_size=(3, 2, 2)).class_names == names
