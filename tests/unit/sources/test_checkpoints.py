from __future__ import annotations

import argparse
import hashlib
import json
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from dyce_export.sources.checkpoints import Checkpoint, read_checkpoint, strip_prefixes
from dyce_export.sources.weights import differences, load_strictly
from dyce_runtime.errors import ModelError


class Net(nn.Module):
    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(self.bn(self.conv(x)).mean((2, 3)))
        return logits


class RunsCode:
    """Unpickling it writes a file."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.witness,)


def filled(value: float) -> dict[str, torch.Tensor]:
    return {name: torch.full_like(tensor, value) for name, tensor in Net().state_dict().items()}


def saved(tmp_path: Path, content: Any, name: str = "model.pt", **options: Any) -> Path:
    path = tmp_path / name
    torch.save(content, path, **options)
    return path


def value_of(checkpoint: Checkpoint) -> float:
    return checkpoint.state_dict["fc.bias"][0].item()


# What is read


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}], ids=["zip", "legacy"])
def test_a_plain_state_dict_is_read_as_it_was_saved(tmp_path: Path, options: dict[str, Any]) -> None:
    weights = Net().state_dict()
    path = saved(tmp_path, weights, "best.pth.tar", **options)
    checkpoint = read_checkpoint(path)
    assert checkpoint.state_dict.keys() == weights.keys()
    assert all(torch.equal(checkpoint.state_dict[name], weights[name]) for name in weights)
    assert checkpoint.file == "best.pth.tar"
    assert checkpoint.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (checkpoint.module, checkpoint.arch, checkpoint.hints, checkpoint.class_names) == (None, None, {}, None)


def test_a_timm_training_checkpoint_gives_its_averaged_weights_and_arguments(tmp_path: Path) -> None:
    args = argparse.Namespace(
        model="resnet18",
        img_size=160,
        in_chans=None,
        mean=[0.5],
        std=None,
        interpolation="",
        crop_pct=0.9,
        num_classes=7,
    )
    optimizer = torch.optim.SGD(Net().parameters(), lr=0.1).state_dict()
    content = {"epoch": 3, "arch": "resnet18", "state_dict": filled(1), "optimizer": optimizer, "args": args}
    checkpoint = read_checkpoint(saved(tmp_path, {**content, "state_dict_ema": filled(2), "metric": np.float64(0.7)}))
    assert value_of(checkpoint) == 2
    assert checkpoint.arch == "resnet18"
    assert checkpoint.hints == {"input_size": (3, 160, 160), "mean": [0.5], "crop_pct": 0.9, "num_classes": 7}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"state_dict": filled(1), "model_ema": filled(2)}, 2),
        ({"model": filled(1), "epoch": 9}, 1),
        ({"model": {"state_dict": filled(1)}}, 1),
        ({"model": filled(1), "ema": None}, 1),
        ({**filled(1), "epoch": 9}, 1),
        ({"model_ema": {"n_averaged": torch.tensor(4), **{f"module.{k}": v for k, v in filled(2).items()}}}, 2),
    ],
    ids=["averaged first", "model", "nested", "ema unset", "beside plain values", "AveragedModel"],
)
def test_weights_are_found_where_training_scripts_put_them(tmp_path: Path, content: Any, expected: float) -> None:
    checkpoint = read_checkpoint(saved(tmp_path, content))
    assert value_of(checkpoint) == expected
    assert not differences(Net(), checkpoint.state_dict)


@pytest.mark.parametrize(
    "facts",
    [{"arch": "resnet18"}, {"model_name": "resnet18"}, {"args": argparse.Namespace(model="resnet18")}],
    ids=["arch", "model_name", "args.model"],
)
def test_a_checkpoint_may_name_its_architecture(tmp_path: Path, facts: dict[str, Any]) -> None:
    assert read_checkpoint(saved(tmp_path, {"state_dict": filled(1), **facts})).arch == "resnet18"


@pytest.mark.parametrize(
    "facts",
    [
        {"class_to_idx": {"dog": 1, "cat": 0, "owl": 2}},
        {"classes": ["cat", "dog", "owl"]},
        {"class_names": ("cat", "dog", "owl")},
        {"pretrained_cfg": {"label_names": ["cat", "dog", "owl"]}},
    ],
    ids=lambda facts: next(iter(facts)),
)
def test_class_names_come_in_the_order_of_the_logits(tmp_path: Path, facts: dict[str, Any]) -> None:
    checkpoint = read_checkpoint(saved(tmp_path, {"state_dict": filled(1), **facts}))
    assert checkpoint.class_names == ("cat", "dog", "owl")


@pytest.mark.parametrize(
    "index", [{"cat": 0, "dog": 2}, {"cat": 1, "dog": 2}, {"cat": 0, "dog": 0}, {"cat": [0], "dog": "1"}]
)
def test_a_class_index_that_is_no_numbering_gives_no_names_and_says_so(tmp_path: Path, caplog, index) -> None:
    content = {"state_dict": filled(1), "class_to_idx": index}
    assert read_checkpoint(saved(tmp_path, content)).class_names is None
    assert "class_to_idx of the checkpoint does not number its 2 classes 0 to 1" in caplog.text


def test_safetensors_are_read_with_their_metadata(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    config = {"input_size": [3, 64, 64], "crop_pct": 0.95, "crop_mode": "squash"}
    save_file(filled(1), path, metadata={"architecture": "resnet18", "pretrained_cfg": json.dumps(config)})
    checkpoint = read_checkpoint(path)
    assert value_of(checkpoint) == 1
    assert checkpoint.arch == "resnet18"
    assert checkpoint.hints == config


def test_a_hub_folder_s_config_describes_the_safetensors_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(filled(1), path)
    config = {"architecture": "resnet18", "num_classes": 3, "pretrained_cfg": {"crop_pct": 1, "mean": [0, 0, 0]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint = read_checkpoint(path)
    assert checkpoint.arch == "resnet18"
    assert checkpoint.hints == {"num_classes": 3, "crop_pct": 1, "mean": [0, 0, 0]}
    (tmp_path / "config.json").write_text('{"model_type": "somebody else\'s"}')
    assert read_checkpoint(path).arch is None


# Prefixes


NAMES = st.lists(st.text("abc", min_size=1, max_size=4), min_size=2, max_size=5, unique=True)
WRAPPERS = st.lists(st.sampled_from(["module.", "_orig_mod.", "model."]), max_size=4)


@given(NAMES, WRAPPERS)
def test_any_nesting_of_wrappers_is_removed(names: list[str], wrappers: list[str]) -> None:
    tensors = {f"{name}.weight": torch.tensor(float(i)) for i, name in enumerate(names)}
    wrapped = {"".join(wrappers) + name: tensor for name, tensor in tensors.items()}
    assert strip_prefixes(wrapped) == tensors


def test_a_prefix_that_only_some_names_have_is_kept() -> None:
    mixed = {"model.weight": torch.ones(1), "head.weight": torch.ones(1)}
    assert strip_prefixes(mixed) == mixed


def test_a_submodule_that_was_compiled_on_its_own_gets_its_name_back() -> None:
    names = {"features._orig_mod.conv.weight": torch.ones(1), "fc.weight": torch.ones(1)}
    assert set(strip_prefixes(names)) == {"features.conv.weight", "fc.weight"}


# Loading


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
@pytest.mark.parametrize("wrap", [lambda net: net, lambda net: nn.ModuleDict({"model": net})], ids=["bare", "wrapped"])
def test_weights_load_whichever_side_is_wrapped(tmp_path: Path, prefix: str, wrap: Any) -> None:
    path = saved(tmp_path, {prefix + name: tensor for name, tensor in filled(5).items()})
    module = wrap(Net())
    load_strictly(module, read_checkpoint(path), what="Net", hint="")
    assert all((tensor == 5).all() for tensor in module.state_dict().values())


def test_half_precision_weights_load_as_float32(tmp_path: Path) -> None:
    module = Net()
    load_strictly(module, read_checkpoint(saved(tmp_path, Net().half().state_dict())), what="Net", hint="")
    assert {p.dtype for p in module.parameters()} == {torch.float32}


def test_a_missing_batch_counter_is_tolerated(tmp_path: Path) -> None:
    weights = filled(2)
    del weights["bn.num_batches_tracked"]
    module = Net()
    load_strictly(module, read_checkpoint(saved(tmp_path, weights)), what="Net", hint="")
    assert (module.fc.bias == 2).all()


def test_a_misfit_names_three_tensors_with_both_shapes_and_counts_the_rest(tmp_path: Path) -> None:
    weights = {**Net(classes=8).state_dict(), "extra.a": torch.ones(2), "extra.b": torch.ones(2)}
    del weights["conv.bias"]
    module = Net()
    before = module.fc.bias.clone()
    with pytest.raises(ModelError) as caught:
        load_strictly(module, read_checkpoint(saved(tmp_path, weights)), what="Net", hint="Check --arch.")
    assert caught.value.message == (
        "model.pt does not fit Net (tensors of another shape: 2, missing: 1, unexpected: 2): "
        "fc.weight is (8, 4) in the file, (3, 4) in the model; fc.bias is (8,) in the file, (3,) in the model; "
        "conv.bias (4,) is missing. The file holds 10 tensors: bn.* (5), fc.* (2), extra.* (2), conv.* (1)"
    )
    assert caught.value.hint == "Check --arch."
    assert torch.equal(module.fc.bias, before), "a refused checkpoint must not leave half of itself behind"


# What is refused


def test_nothing_in_a_file_runs_unless_it_is_trusted(tmp_path: Path) -> None:
    witness = tmp_path / "it ran"
    path = saved(tmp_path, {"state_dict": filled(1), "config": RunsCode(witness)})
    with pytest.raises(ModelError, match="pickles run code") as caught:
        read_checkpoint(path)
    assert not witness.exists()
    assert "--trust-pickle" in caught.value.hint
    assert value_of(read_checkpoint(path, trust_pickle=True)) == 1
    assert witness.exists()


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrap", [lambda net: net, nn.DataParallel, lambda net: {"model": net}])
def test_a_whole_module_needs_trust(tmp_path: Path, wrap: Any, options: dict[str, Any]) -> None:
    path = saved(tmp_path, wrap(Net()), **options)
    with pytest.raises(ModelError, match="holds pickled Python objects") as caught:
        read_checkpoint(path)
    assert "--arch" in caught.value.hint
    assert "--trust-pickle" in caught.value.hint
    assert caught.value.__cause__ is not None
    checkpoint = read_checkpoint(path, trust_pickle=True)
    assert isinstance(checkpoint.module, Net)
    assert checkpoint.state_dict == {}


def test_a_trusted_module_whose_code_is_gone_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone_net.py").write_text("from torch import nn\nclass Gone(nn.Linear): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    import gone_net  # type: ignore[import-not-found]

    path = saved(tmp_path, gone_net.Gone(2, 2))
    monkeypatch.undo()
    monkeypatch.delitem(sys.modules, "gone_net")
    monkeypatch.chdir(tmp_path.parent)
    with pytest.raises(ModelError, match=r"needs code that cannot be imported: .*gone_net") as caught:
        read_checkpoint(path, trust_pickle=True)
    assert "PYTHONPATH" in caught.value.hint
    monkeypatch.chdir(tmp_path)
    assert read_checkpoint(path, trust_pickle=True).module is not None


def torchscript(path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(path)  # type: ignore[no-untyped-call]


def exported(path: Path) -> None:
    program = torch.export.export(nn.Linear(2, 2), (torch.ones(2, 2),))
    torch.export.save(program, path.with_suffix(".pt2"))
    path.with_suffix(".pt2").rename(path)


def archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as stream:
        stream.writestr("model/readme", "hello")


def shortened(write: Callable[[Path], None]) -> Callable[[Path], None]:
    def shorten(path: Path) -> None:
        write(path)
        path.write_bytes(path.read_bytes()[:-600])

    return shorten


OTHER_FILES: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "missing": ("model.pt", lambda path: None, "there is no file"),
    "directory": ("model.pt", Path.mkdir, "is a directory; expected a checkpoint file"),
    "empty": ("model.pt", Path.touch, "is empty; expected a checkpoint"),
    "text": (
        "model.pt",
        lambda path: path.write_text("epoch,loss"),
        "is not a checkpoint: it begins with b'epoch,'; expected a file written by torch.save",
    ),
    "png": ("model.pt", lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n"), "is a picture"),
    "pickle": ("model.pt", lambda path: path.write_bytes(pickle.dumps({"a": 1})), "is a bare pickle"),
    "zip": ("model.pt", archive, "is a zip archive without weights"),
    "torchscript": ("model.pt", torchscript, "is a TorchScript archive, which torch.export cannot capture"),
    "exported": ("model.pt", exported, "is an exported program"),
    "truncated": (
        "model.pt",
        shortened(lambda path: torch.save(filled(1), path)),
        "is truncated: the end of the archive is missing",
    ),
    "truncated legacy": (
        "model.pt",
        shortened(lambda path: torch.save(filled(1), path, _use_new_zipfile_serialization=False)),
        "is truncated or damaged",
    ),
    "truncated safetensors": (
        "model.safetensors",
        shortened(lambda path: save_file(filled(1), path)),
        "is truncated or not a safetensors file",
    ),
    "text safetensors": (
        "model.safetensors",
        lambda path: path.write_text("epoch,loss"),
        "is truncated or not a safetensors file",
    ),
}


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.parametrize("kind", OTHER_FILES)
@pytest.mark.parametrize("trust_pickle", [False, True], ids=["", "trusted"])
def test_other_files_are_refused_in_words(tmp_path: Path, kind: str, trust_pickle: bool) -> None:
    name, write, message = OTHER_FILES[kind]
    path = tmp_path / name
    write(path)
    with pytest.raises(ModelError) as caught:
        read_checkpoint(path, trust_pickle=trust_pickle)
    assert f"{path} {message}" in caught.value.message or f"{message} {path}" == caught.value.message
    assert "weights_only" not in caught.value.message


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"optimizer": {"state": {0: {"momentum": torch.ones(3)}}}, "epoch": 3}, "only: optimizer, epoch"),
        ({"loss": torch.tensor(0.3)}, "only: loss"),
        ({}, "only: nothing"),
        ([torch.ones(2)], "only: a list"),
    ],
    ids=["optimizer", "scalar", "empty", "list"],
)
def test_a_file_without_weights_says_what_it_holds(tmp_path: Path, content: Any, found: str) -> None:
    with pytest.raises(ModelError, match=f"holds no model weights, {found}; expected a state dict"):
        read_checkpoint(saved(tmp_path, content))


@pytest.mark.parametrize(
    ("facts", "claimed"),
    [
        ({"metric": 76.5}, 0.765),  # timm
        ({"metric": 1.2, "args": {"eval_metric": "loss"}}, None),
        ({"best_acc1": torch.tensor(71.0)}, 0.71),  # torchvision's example
        ({"val_acc": np.float64(0.9), "best_acc": 0.93}, 0.9),
        ({"acc": 0.99}, None),  # may be that of the training
        ({"best_acc": -1}, None),
        ({"best_acc": "n/a", "val_acc": float("nan")}, None),
        ({}, None),
    ],
)
def test_the_accuracy_that_a_training_script_stored_is_read(tmp_path, facts, claimed):
    torch.save({"state_dict": {"fc.weight": torch.zeros(2, 3)}, **facts}, tmp_path / "c.pt")
    assert read_checkpoint(tmp_path / "c.pt").claimed == claimed
