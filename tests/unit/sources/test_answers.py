"""What a forward returns: read where the logits are evident, otherwise called what it is."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dyce_export.sources.answers import answer
from dyce_runtime.errors import CaptureError
from tests.models import CLASSES, INPUT_SIZE, Wrapped, build, captured, images


@dataclass
class Output:
    logits: Tensor
    features: Tensor | None = None
    loss: Tensor | None = None


Aux = namedtuple("Aux", "logits aux_logits")

READ: dict[str, Callable[[Tensor], Any]] = {
    "a tensor": lambda y: y,
    "a tuple of one": lambda y: (y,),
    "a list of one": lambda y: [y],
    "a dict of one": lambda y: {"out": y},
    "logits of a dict": lambda y: {"features": y * 2, "logits": y},
    "logits of a data class": lambda y: Output(y, y * 2),
    "logits of a named tuple": lambda y: Aux(y, y * 2),
    "beside a feature map": lambda y: (y[:, :, None, None].expand(-1, -1, 3, 3), y),
    "with empty axes": lambda y: y[:, :, None, None],
}


@pytest.mark.parametrize("finish", READ.values(), ids=READ)
def test_logits_are_read_by_torch_and_in_the_graph(finish: Callable[[Tensor], Any]) -> None:
    expected = build(lambda: Wrapped(lambda y: y))(images(3))
    model = build(lambda: Wrapped(finish))
    assert torch.equal(answer(model, images(3)), expected)
    found = captured(lambda: Wrapped(finish)).module(check_guards=False)(images(3))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_what_is_left_of_a_batch_of_one_is_a_batch() -> None:
    model = build(lambda: Wrapped(lambda y: y.squeeze()))
    assert answer(model, images(1)).shape == (1, CLASSES)
    assert answer(model, images(4)).shape == (4, CLASSES)


REFUSED: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "two": (lambda y: (y, y), r"returns 2 tensors \(2x5, 2x5\)"),
    "names, none of them logits": (lambda y: {"a": y, "b": y}, r"returns 2 tensors \(a 2x5, b 2x5\)"),
    "nothing": (lambda y: None, r"no tensor \(None\)"),
    "a word": (lambda y: "cat", r"no tensor \(str\)"),
    "a number": (lambda y: 3, r"no tensor \(int\)"),
    "boxes": (lambda y: [{"boxes": y, "labels": y[:, 0], "scores": y[:, 0]}], "is a detector"),
    "boxes of a data class": (lambda y: {"logits": y[:, None], "pred_boxes": y[:, None, :4]}, "is a detector"),
    "pixels": (lambda y: {"out": y[:, :, None, None].expand(-1, -1, 4, 4)}, "an answer for every pixel: a segmenter"),
    "regions": (lambda y: y[:, None].expand(-1, 3, -1), "several answers for each picture"),
    "no batch": (lambda y: y.mean(0, keepdim=True), r"float32 of shape \(1, 5\)"),
    "half": (lambda y: y.half(), r"float16 of shape \(batch, 5\)"),
    "double": (lambda y: y.double(), r"float64 of shape \(batch, 5\)"),
    "labels": (lambda y: y.argmax(1, keepdim=True), "int64 of shape"),
}


@pytest.mark.parametrize(("finish", "found"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_row_of_logits_is_called_what_it_is(finish: Callable[[Tensor], Any], found: str) -> None:
    with pytest.raises(CaptureError, match=found) as caught:
        captured(lambda: Wrapped(finish))
    assert caught.value.hint
    assert len(caught.value.message.splitlines()) == 1


# --- what a forward takes --------------------------------------------------------------------------------------------


class Takes(nn.Module):
    """A forward of the test's choice beside a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.classifier = nn.Conv2d(3, 4, 3), nn.Linear(4, CLASSES)

    def run(self, x: Tensor) -> Tensor:
        return self.classifier(self.conv(x).mean((2, 3)))


class Star(Takes):
    def forward(self, *args: Tensor, **options: Any) -> Tensor:
        return self.run(*args)


class Optional(Takes):
    def forward(self, x: Tensor, mask: Tensor | None = None, *, scale: float = 1.0) -> Tensor:
        return self.run(x) * scale


@pytest.mark.parametrize("make", [Star, Optional])
def test_a_forward_that_can_be_called_with_images_alone_is(make: type[Takes]) -> None:
    program = captured(make).module(check_guards=False)
    torch.testing.assert_close(program(images(3)), build(make)(images(3)), rtol=1e-5, atol=1e-5)


class TwoInputs(Takes):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.run(x) + y


class ByName(Takes):
    def forward(self, x: Tensor, *, task: str) -> Tensor:
        return self.run(x)


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.classifier = nn.Embedding(100, 4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.words(x.flatten(1)).mean(1))


class TextByName(Text):
    def forward(self, input_ids: Tensor) -> Tensor:
        return super().forward(input_ids)


class Leaves(Takes):
    def forward(self, x: Tensor) -> Tensor:
        raise SystemExit(3)


class Holder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Star()


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (TwoInputs, r"takes 2 inputs \(x, y\); expected one"),
        (ByName, r"takes 2 inputs \(x, task\)"),
        (Text, "Text is a text model"),
        (TextByName, "TextByName is a text model"),
        (Leaves, r"SystemExit: 3; it stopped in the model itself \(Leaves, test_answers.py"),
        (Holder, "Holder has no forward"),
    ],
)
def test_what_cannot_be_called_with_images_alone_is_called_what_it_is(make: type[nn.Module], found: str) -> None:
    with pytest.raises(CaptureError, match=found):
        captured(make)


def test_the_network_inside_a_holder_is_named() -> None:
    with pytest.raises(CaptureError) as caught:
        captured(Holder)
    assert caught.value.hint == "Hand over the network inside it (net)."


def test_what_a_forward_prints_is_dropped(capsys: pytest.CaptureFixture[str]) -> None:
    class Talking(Takes):
        def forward(self, x: Tensor) -> Tensor:
            print("shape", x.shape)
            return self.run(x)

    captured(Talking)
    answer(build(Talking), images(2, INPUT_SIZE))
    assert capsys.readouterr().out == ""
