import inspect
import logging
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dyce_export.graph.capture import DECOMPOSITIONS, capture
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


class Turned(nn.Module):
    """Turns a picture by torch's own operations for control flow."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.conv = how, nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "while_loop":
            (x,) = torch.while_loop(lambda x: x.sum() < 0, lambda x: (x + 1,), (x,))
        else:
            x = torch.cond(x.sum() > 0 if self.how == "values" else x.shape[0] > 4, lambda x: x + 1, torch.neg, (x,))
        return self.conv(x).mean((2, 3))


@pytest.mark.parametrize(("how", "operation"), [("values", "cond"), ("batch", "cond"), ("while_loop", "while_loop")])
def test_a_graph_inside_the_graph_is_named(how, operation):
    with pytest.raises(CaptureError, match=rf"decides while it runs .* {operation} in the model itself \(Turned"):
        captured(lambda: Turned(how))


def test_an_error_of_the_model_itself_is_passed_on():
    def fail(logits: Tensor) -> Tensor:
        raise KeyError("no such thing")

    with pytest.raises(CaptureError, match="fails on images of 3x16x16: KeyError: 'no such thing'; it stopped in the"):
        captured(lambda: Wrapped(fail))


def test_a_wrong_input_size_is_a_capture_error():
    with pytest.raises(CaptureError, match=r"fails on images of 1x16x16: .*expected input") as caught:
        captured(Convolutions, (1, 16, 16))
    assert "--input-size" in caught.value.hint


def test_a_forward_that_fixes_the_batch_size_is_refused_with_what_to_do():
    with pytest.raises(CaptureError, match="cannot be captured") as caught:
        captured(lambda: Wrapped(lambda logits: logits.reshape(len(logits), -1)))
    assert "x.shape[0]" in caught.value.hint


def test_an_error_is_one_line_without_a_graph():
    def leave_torch(logits: Tensor) -> Tensor:
        return torch.from_numpy(logits.detach().numpy())

    with pytest.raises(CaptureError) as caught:
        captured(lambda: Wrapped(leave_torch))
    assert len(caught.value.message.splitlines()) == 1
    assert len(caught.value.message) < 600


# --- a forward that writes to what is not its own --------------------------------------------------------------------


class Counting(Convolutions):
    """Counts its calls, and may use what it counted."""

    def __init__(self, *, used: bool = False) -> None:
        super().__init__()
        self.used = used
        self.register_buffer("calls", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        logits = super().forward(x)
        return logits * self.calls if self.used else logits


def test_a_counter_that_no_answer_depends_on_is_left_out(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, logger="dyce_export")
    program = captured(Counting)
    assert "the forward writes to calls, on which no output depends" in caplog.text
    torch.testing.assert_close(
        program.module(check_guards=False)(images(3)), build(Convolutions)(images(3)), rtol=1e-5, atol=1e-5
    )


def test_a_model_whose_answers_depend_on_its_state_is_refused_by_the_buffers_name():
    with pytest.raises(CaptureError, match="reads and writes calls; expected the same answer for the same picture"):
        captured(lambda: Counting(used=True))


def test_a_weight_that_a_forward_changes_is_named():
    class Decaying(Convolutions):
        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            self.classifier.weight.mul_(0.5)
            return super().forward(x)

    with pytest.raises(CaptureError, match=r"reads and writes classifier\.weight"):
        captured(Decaying)


def test_an_image_that_a_forward_changes_is_the_callers_no_more():
    class Centred(Convolutions):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.sub_(x.mean((2, 3), keepdim=True)))

    pixels = images(2) + 3
    expected = build(Centred)(pixels.clone())
    program = captured(Centred).module(check_guards=False)
    before = pixels.clone()
    torch.testing.assert_close(program(pixels), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(pixels, before)


# --- a batch of one --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "squeeze",
    [
        lambda logits: logits[:, :, None, None].squeeze(),
        lambda logits: logits.squeeze(0),
        lambda logits: logits[:, None].squeeze((0, 1)),
    ],
    ids=["all axes", "the batch", "two axes"],
)
def test_a_squeeze_leaves_a_batch_of_one_a_batch(squeeze):
    program = captured(lambda: Wrapped(squeeze)).module(check_guards=False)
    plain = build(lambda: Wrapped(lambda logits: logits))
    for batch in (1, 3):
        torch.testing.assert_close(program(images(batch)), plain(images(batch)), rtol=1e-5, atol=1e-5)


# --- random numbers --------------------------------------------------------------------------------------------------

RANDOM = {
    "dropout": lambda x: F.dropout(x, 0.01),
    "noise": lambda x: x + 0.1 * torch.randn_like(x),
    "mask": lambda x: x * (torch.rand(x.shape[0], 1) < 0.9),
    "gumbel": F.gumbel_softmax,
    "attention": lambda x: F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], dropout_p=0.1)[:, 0],
}


@pytest.mark.parametrize("draw", RANDOM.values(), ids=RANDOM)
def test_random_numbers_are_found_in_the_graph_with_module_and_line(draw):
    class Random(Convolutions):
        def forward(self, x: Tensor) -> Tensor:
            return draw(super().forward(x))

    found = r"answers are random: \w+ in the model itself \(Random, test_capture.py:\d+\)"
    with pytest.raises(CaptureError, match=found):
        captured(Random)


def test_random_numbers_that_no_answer_depends_on_do_not_matter():
    class Idle(Convolutions):
        def forward(self, x: Tensor) -> Tensor:
            torch.randn(3)
            return super().forward(x)

    assert "randn" not in str(captured(Idle).graph)


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
