"""A model's weights among all that training scripts keep: under which prefix they are found, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dyce_export.sources.checkpoints import read_checkpoint
from dyce_export.sources.weights import check_values, load_strictly, summary, weights_for
from dyce_runtime.errors import ModelError
from tests.unit.sources.test_checkpoints import Net, filled

Tensors = dict[str, Tensor]


def put(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def loaded(folder: Path, content: Any, module: nn.Module | None = None) -> nn.Module:
    """A module with the weights of a file of that content."""
    torch.save(content, folder / "model.pt")
    module = module or Net()
    load_strictly(module, weights_for(read_checkpoint(folder / "model.pt"), module, what="Net"), what="Net", hint="")
    return module


def value(module: nn.Module) -> float:
    values = {float(tensor.flatten()[0]) for tensor in module.state_dict().values()}
    assert len(values) == 1, "weights of several copies were mixed"
    return values.pop()


FOREIGN = {
    "criterion": {"criterion.weight": torch.ones(3)},
    "loss": {"loss_fn.pos_weight": torch.ones(3), "aux_loss.0.weight": torch.ones(2)},
    "metrics": {"val_acc.correct": torch.ones(3), "train_metrics.f1.tp": torch.ones(3)},
    "queue": {"queue": torch.ones(9, 4), "queue_ptr": torch.ones(1)},
}
PREFIXES = ["model.", "net.", "_forward_module.model.", "encoder_q.", "student.", "module.net.", "a.b.c.", "backbone."]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("foreign", FOREIGN)
@pytest.mark.parametrize("key", [None, "state_dict", "anything"])
def test_the_model_is_found_under_its_prefix(tmp_path: Path, prefix: str, foreign: str, key: str | None) -> None:
    tensors = {**FOREIGN[foreign], **put(prefix, filled(4)), "head_of_another.weight": torch.ones(2, 2)}
    assert value(loaded(tmp_path, tensors if key is None else {"epoch": 3, key: tensors})) == 4


@pytest.mark.parametrize("foreign", FOREIGN)
def test_what_training_keeps_beside_a_model_is_left_out(tmp_path: Path, foreign: str) -> None:
    assert value(loaded(tmp_path, {**filled(4), **FOREIGN[foreign]})) == 4
    assert value(loaded(tmp_path, put("model.", {**filled(4), **FOREIGN[foreign]}))) == 4


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(["module", "_orig_mod", "model", "net", "x"]), max_size=4), st.integers(0, 3))
def test_any_nesting_is_found(tmp_path: Path, parts: list[str], dicts: int) -> None:
    content: Any = put("".join(f"{part}." for part in parts), filled(2))
    for depth in range(dicts):
        content = {"epoch": torch.tensor(1), f"level{depth}": content}
    assert value(loaded(tmp_path, content)) == 2


def test_a_part_that_was_wrapped_on_its_own_gets_its_names_back(tmp_path: Path) -> None:
    tensors = {name.replace("conv.", "conv.module._orig_mod."): tensor for name, tensor in filled(3).items()}
    assert value(loaded(tmp_path, tensors)) == 3


def test_a_model_with_parts_under_one_prefix_is_whole(tmp_path: Path) -> None:
    def build() -> nn.Module:
        return nn.ModuleDict({"backbone": nn.Conv2d(3, 4, 3), "head": nn.Linear(4, 3)})

    tensors = {name: torch.full_like(tensor, 6) for name, tensor in build().state_dict().items()}
    content = {"state_dict": {**put("model.", tensors), "criterion.weight": torch.ones(3)}}
    assert value(loaded(tmp_path, content, build())) == 6


# Several copies


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": {**put("model.", filled(1)), **put("ema_model.", filled(2))}},
        {"state_dict": {**put("model.", filled(1)), **put("model_ema.module.", filled(2))}},
        {"model": filled(1), "ema": filled(2)},
        {"state_dict": filled(1), "averaged": {"n_averaged": torch.tensor(3), **put("module.", filled(2))}},
        {**filled(1), **put("swa.", filled(2))},
    ],
    ids=["Lightning", "timm in Lightning", "keys", "AveragedModel", "beside the model"],
)
def test_averaged_weights_are_taken_where_one_copy_is_named_so(
    tmp_path: Path, content: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="dyce_export")
    assert value(loaded(tmp_path, content)) == 2
    assert "taking the averaged one" in caplog.text


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (put("student.", filled(1)) | put("teacher.", filled(2)), ["student.*", "teacher.*"]),
        ({"encoder_q": filled(1), "encoder_k": filled(2)}, ["encoder_q.*", "encoder_k.*"]),
        (filled(1) | put("teacher.", filled(2)), ["at the top", "teacher.*"]),
        ({"ema_1": filled(1), "ema_2": filled(2), "model": filled(3)}, ["ema_1.*", "ema_2.*", "model.*"]),
    ],
    ids=["distillation", "contrast", "beside the model", "two averages"],
)
def test_copies_that_differ_are_listed(tmp_path: Path, content: Any, named: list[str]) -> None:
    with pytest.raises(ModelError, match=f"holds {len(named)} copies of Net that differ") as caught:
        loaded(tmp_path, content)
    assert all(prefix in caught.value.message for prefix in named)
    assert caught.value.hint


def test_copies_that_are_the_same_are_one(tmp_path: Path) -> None:
    assert value(loaded(tmp_path, {**put("net.", filled(1)), **put("model.net.", filled(1))})) == 1


def test_of_copies_with_other_shapes_the_one_that_fits_is_taken(tmp_path: Path) -> None:
    teacher = {name: torch.full_like(tensor, 9) for name, tensor in Net(classes=8).state_dict().items()}
    assert value(loaded(tmp_path, put("student.", filled(1)) | put("teacher.", teacher))) == 1


# What is refused


@pytest.mark.parametrize(
    "extra", ["conv.extra.weight", "fc2.weight", "norm.weight"], ids=["in a part", "a part", "another part"]
)
@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_file_of_a_larger_model_does_not_fit(tmp_path: Path, prefix: str, extra: str) -> None:
    with pytest.raises(ModelError, match=rf"unexpected: 1\): {extra} \(3,\) is not in the model"):
        loaded(tmp_path, put(prefix, {**filled(1), extra: torch.ones(3)}))


def test_what_comes_nearest_is_compared_and_the_rest_summarised(tmp_path: Path) -> None:
    tensors = put("net.backbone.", filled(1)) | {f"loss.{n}.weight": torch.ones(1) for n in range(5000)}
    tensors["net.head.weight"] = tensors.pop("net.backbone.fc.weight")
    with pytest.raises(ModelError, match=r"missing: 1, unexpected: 0\): fc.weight \(3, 4\) is missing") as caught:
        loaded(tmp_path, tensors)
    assert "The file holds 5009 tensors: loss.* (5000), net.* (9)" in caught.value.message
    assert len(caught.value.message) < 500


def test_a_summary_goes_as_deep_as_the_prefixes_part() -> None:
    tensors = dict.fromkeys([f"state_dict.model.block{n}.weight" for n in range(9)], torch.ones(1))
    assert summary(tensors).startswith("9 tensors: state_dict.model.block0.* (1), ")
    assert summary(tensors).endswith("and 3 more")


KINDS: dict[str, tuple[Tensor, str]] = {
    "sparse": (torch.ones(3, 4).to_sparse(), "is sparse"),
    "sparse rows": (torch.ones(3, 4).to_sparse_csr(), "is sparse"),
    "meta": (torch.ones(3, 4, device="meta"), "has no values"),
    "quantised": (torch.quantize_per_tensor(torch.ones(3, 4), 0.1, 0, torch.qint8), "is quantised"),
    "complex": (torch.ones(3, 4, dtype=torch.complex64), "complex64"),
    "integers": (torch.ones(3, 4, dtype=torch.int8), "int8"),
    "booleans": (torch.ones(3, 4, dtype=torch.bool), "bool"),
    "terabytes": (torch.zeros(1).expand(1 << 40, 1), r"\(1099511627776, 1\) in the file"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", ["", "model."])
def test_tensors_that_cannot_be_weights_are_refused(tmp_path: Path, kind: str, prefix: str) -> None:
    tensor, words = KINDS[kind]
    content = put(prefix, {**filled(1), "fc.weight": tensor}) | {"criterion.weight": torch.ones(3)}
    with pytest.raises(ModelError, match=f"fc.weight.*{words}") as caught:
        loaded(tmp_path, content)
    assert len(caught.value.message.splitlines()) == 1


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_a_model_with_weights_that_are_no_numbers_is_refused(number: float) -> None:
    module = Net()
    check_values(module, "model.pt")
    module.fc.bias.data[1] = number
    with pytest.raises(ModelError, match=r"1 of the 9 tensors of model.pt hold NaN or infinity, such as fc.bias"):
        check_values(module, "model.pt")


def test_a_buffer_may_hold_infinity_but_not_nan() -> None:
    module = Net()
    module.register_buffer("mask", torch.tensor([0.0, -float("inf")]))
    check_values(module, "x")
    module.register_buffer("mask", torch.tensor([0.0, float("nan")]))
    with pytest.raises(ModelError, match="such as mask"):
        check_values(module, "x")


def test_a_module_without_values_is_refused() -> None:
    with torch.device("meta"), pytest.raises(ModelError, match=r"without values, such as conv.weight"):
        check_values(Net(), "x")
