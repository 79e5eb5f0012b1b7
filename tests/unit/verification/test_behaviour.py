"""What an answer may not depend on."""

from __future__ import annotations

import random
from functools import partial
from itertools import count

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dyce_export.sources.answers import answer
from dyce_export.verification.behaviour import check_alone, check_behaviour
from dyce_runtime.errors import CaptureError, DyceError, ModelError
from tests.models import Chain, Convolutions, Folded, Tokens, build, captured, images


def check(make: type[nn.Module]) -> None:
    program, model = captured(make), build(make)
    check_behaviour(partial(answer, model), program, images(3))


@pytest.mark.parametrize("make", [Convolutions, Chain, Tokens, Folded])
def test_a_classifier_passes_and_random_numbers_go_on_as_they_were(make: type[nn.Module]) -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index, union-attr]
    check(make)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]  # type: ignore[index, union-attr]


class PythonRandom(Convolutions):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1 + random.random())


class ArrayRandom(Convolutions):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + float(np.random.rand()))


CALLS = count(1)


class Stateful(Convolutions):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * next(CALLS)


class Unseeded(Convolutions):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + float(np.random.default_rng().random()))


class BatchCentred(Convolutions):
    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits - logits.mean(0)


class NoStatistics(Convolutions):
    def __init__(self) -> None:
        super().__init__()
        self.b2.norm = nn.BatchNorm2d(8, track_running_stats=False)


class Functional(Convolutions):
    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(super().forward(x), None, None, training=True)


class Alone(Convolutions):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1 if x.shape[0] > 1 else 2)


class Numbered(Convolutions):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.arange(x.shape[0])[:, None]


class Captured(Convolutions):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2 if torch.compiler.is_compiling() else 1)


class NotANumber(Convolutions):
    def __init__(self) -> None:
        super().__init__()
        self.classifier.weight.data[0, 0] = torch.nan


class Infinite(Convolutions):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 0


@pytest.mark.parametrize(
    ("make", "error", "found"),
    [
        (PythonRandom, CaptureError, "answers are random: two runs on the same input differ"),
        (ArrayRandom, CaptureError, "answers are random: two runs on the same input differ"),
        (Stateful, CaptureError, "answers change from run to run"),
        (Unseeded, CaptureError, "answers change from run to run"),
        (
            BatchCentred,
            CaptureError,
            r"other pictures of its batch, first in the model itself \(BatchCentred, test_",
        ),
        (NoStatistics, CaptureError, r"other pictures of its batch, first in b2.norm \(BatchNorm2d, models.py:\d+\)"),
        (Functional, CaptureError, r"other pictures of its batch, first in the model itself \(Functional, test_behav"),
        (Alone, CaptureError, "depends on the size of its batch"),
        (Numbered, CaptureError, "depends on the size of its batch"),
        (Captured, CaptureError, "the graph captured from the model gives other answers than the model"),
        (NotANumber, ModelError, r"NaN or infinity: 1 of the 40 values of classifier\.weight are"),
        (Infinite, ModelError, "NaN or infinity on ordinary pictures, though its weights are finite"),
    ],
)
def test_what_an_answer_depends_on_beside_its_picture_is_said(
    make: type[nn.Module], error: type[DyceError], found: str
) -> None:
    with pytest.raises(error, match=found) as caught:
        check(make)
    assert caught.value.hint


class TrainedNorm(nn.BatchNorm2d):
    """Stays in training mode, whatever it is told."""

    def train(self, mode: bool = True) -> TrainedNorm:
        return super().train(True)


def test_a_norm_that_stays_in_training_mode_is_named() -> None:
    class Frozen(Convolutions):
        def __init__(self) -> None:
            super().__init__()
            self.b3.norm = TrainedNorm(8)

    found = r"other pictures of its batch: b3.norm \(TrainedNorm, models.py:\d+\) is a batch norm in training mode"
    with pytest.raises(CaptureError, match=found):
        check(Frozen)


def test_a_picture_alone_may_differ_by_rounding() -> None:
    model = build(Convolutions)
    check_alone(partial(answer, model), images(4), 1e-4)
    with pytest.raises(CaptureError, match="alone it differs by"):
        check_alone(partial(answer, build(Alone)), images(4), 1e-4)
