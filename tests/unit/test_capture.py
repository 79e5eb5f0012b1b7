import inspect
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dyce_export.capture import DECOMPOSITIONS, capture
from dyce_runtime.errors import CaptureError
from tests.models import (
    INPUT_SIZE,
    Branches,
    Chain,
    Convolutions,
    Folded,
    Tokens,
    Wrapped,
    build,
    captured,
    images,
    program_of,
)

aten = torch.ops.aten


@pytest.mark.parametrize("make", [Convolutions, Chain, Tokens, Branches, Folded])
def test_a_captured_program_computes_what_the_model_computes_at_any_batch_size(make):
    program = program_of(make).module(check_guards=False)
    for batch in (1, 2, 5):
        torch.testing.assert_close(program(images(batch)), build(make)(images(batch)), rtol=1e-5, atol=1e-5)


def test_dropout_is_off_and_the_model_keeps_its_mode():
    model = build(Chain)
    program = capture(model, INPUT_SIZE).module(check_guards=False)
    torch.testing.assert_close(program(images(2)), program(images(2)), rtol=0, atol=0)
    assert not model.training


# --- what cannot be captured -----------------------------------------------------------------------------------------


class Gate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:  # the line that the message has to name
            return x
        return -x


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ModuleDict({"gate": Gate()})["gate"])

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).mean((2, 3))


def test_a_branch_on_values_is_named_by_module_class_file_and_line():
    lines, start = inspect.getsourcelines(Gate.forward)
    line = start + next(i for i, text in enumerate(lines) if "has to name" in text)
    with pytest.raises(CaptureError, match=re.escape(f"it stopped in body.1 (Gate, test_capture.py:{line})")) as caught:
        captured(Gated)
    assert "branches on the values" in caught.value.hint
    assert caught.value.exit_code == 1


def test_an_error_of_the_model_itself_is_passed_on():
    def fail(logits: Tensor) -> Tensor:
        raise KeyError("no such thing")

    with pytest.raises(CaptureError, match="KeyError: 'no such thing'; it stopped in the model itself"):
        captured(lambda: Wrapped(fail))


def test_a_wrong_input_size_is_a_capture_error():
    with pytest.raises(CaptureError, match="cannot be captured"):
        captured(Convolutions, (1, 16, 16))


def test_a_forward_that_fixes_the_batch_size_is_refused_with_what_to_do():
    with pytest.raises(CaptureError, match="cannot be captured") as caught:
        captured(lambda: Wrapped(lambda logits: logits.reshape(len(logits), -1)))
    assert "x.shape[0]" in caught.value.hint


@pytest.mark.parametrize(
    ("finish", "found"),
    [
        (lambda logits: (logits, logits), "takes 1 inputs and returns 2 outputs"),
        (lambda logits: (logits,), "inside a tuple"),
        (lambda logits: {"logits": logits}, "inside a dict"),
        (lambda logits: None, "returns no tensor"),
        (lambda logits: logits[:, :, None, None], r"float32 of shape \(\w+, 5, 1, 1\)"),
        (lambda logits: logits[:, 0], r"float32 of shape \(\w+,\)"),
        (lambda logits: logits.mean(0, keepdim=True), r"float32 of shape \(1, 5\)"),
        (lambda logits: logits.half(), r"float16 of shape \(\w+, 5\)"),
        (lambda logits: logits.argmax(1, keepdim=True), "int64 of shape"),
    ],
    ids=["two", "tuple", "dict", "none", "rank 4", "rank 1", "no batch", "half", "labels"],
)
def test_what_is_not_one_batch_of_logits_is_refused(finish, found):
    with pytest.raises(CaptureError, match=found):
        captured(lambda: Wrapped(finish))


def test_a_model_with_two_inputs_is_refused():
    class TwoInputs(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    with pytest.raises(CaptureError, match="missing a required argument: 'y'"):
        captured(TwoInputs)


def test_a_model_that_writes_to_its_own_state_is_refused_by_the_buffers_name():
    class Counting(Convolutions):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(x)

    with pytest.raises(CaptureError, match=r"writes to its own state while it runs \(calls\)"):
        captured(Counting)


# --- operations that are written in others ---------------------------------------------------------------------------

ATTENTION = {
    "plain": {},
    "scaled": {"scale": 0.3},
    "causal": {"is_causal": True},
    "float mask": {"attn_mask": torch.linspace(-3, 3, 30).reshape(5, 6)},
    "bool mask": {"attn_mask": torch.arange(30).reshape(5, 6) % 3 > 0},
    "a row without keys": {"attn_mask": torch.arange(5)[:, None].expand(5, 6) != 2},
    "batched mask": {"attn_mask": (torch.arange(60).reshape(2, 1, 5, 6) % 4 > 0)},
}


@pytest.mark.parametrize("options", ATTENTION.values(), ids=ATTENTION)
@pytest.mark.parametrize("axes", [(2, 4), (2, 2, 4)], ids=["4-d", "5-d"])
def test_attention_in_plain_operations_equals_torchs(axes, options):
    random = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(*axes, n, 8, generator=random) for n in (5, 6, 6))
    if options.get("attn_mask") is not None and options["attn_mask"].ndim == 4 and len(axes) == 3:
        options = {"attn_mask": options["attn_mask"][:, None]}
    expected = F.scaled_dot_product_attention(query, key, value, **options)
    found = DECOMPOSITIONS[aten.scaled_dot_product_attention.default](query, key, value, **options)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_grouped_query_attention_equals_torchs():
    random = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, heads, 5, 8, generator=random) for heads in (6, 2, 2))
    expected = F.scaled_dot_product_attention(query, key, value, enable_gqa=True)
    found = DECOMPOSITIONS[aten.scaled_dot_product_attention.default](query, key, value, enable_gqa=True)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_no_operation_that_is_written_in_others_is_left_in_a_program():
    program = captured(Tokens)
    names = {str(node.target) for node in program.graph.nodes}
    assert "aten.scaled_dot_product_attention.default" not in names
    torch.testing.assert_close(program.module()(images(3) * 3), build(Tokens)(images(3) * 3), rtol=1e-5, atol=1e-5)


def test_writes_in_place_are_gone():
    def negate(logits: Tensor) -> Tensor:
        logits += 1
        return logits.neg_()

    program = captured(lambda: Wrapped(negate))
    names = [str(node.target) for node in program.graph.nodes]
    assert not any(re.search(r"aten\.\w+_\.", name) for name in names)
