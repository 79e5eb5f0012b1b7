import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dyce_export.graph.capture import capture
from dyce_export.graph.macs import count_macs


class Only(nn.Module):
    """A single operation, pooled to logits."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return y if y.ndim == 2 else y.flatten(2).mean(2)


class Tokenwise(nn.Module):
    """A linear layer on 64 tokens of 3 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(2).transpose(1, 2)).transpose(1, 2)


class Attention(nn.Module):
    """Attention between 64 tokens of 3 channels, without projections."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        return F.scaled_dot_product_attention(tokens, tokens, tokens).transpose(1, 2)


FORMULAS = {
    "convolution": (nn.Conv2d(3, 12, 3, padding=1), 8 * 8 * 12 * 3 * 9),
    "strided": (nn.Conv2d(3, 12, 4, stride=4), 2 * 2 * 12 * 3 * 16),
    "grouped": (nn.Conv2d(3, 12, 3, padding=1, groups=3), 8 * 8 * 12 * 9),
    "dilated": (nn.Conv2d(3, 4, 3, dilation=2), 4 * 4 * 4 * 3 * 9),
    "linear": (nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), 192 * 10),
    "linear on tokens": (Tokenwise(), 64 * 3 * 7),
    "attention": (Attention(), 2 * 64 * 64 * 3),
    "norms and activations": (nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.GELU()), 64 * 3 * 4),
}


@pytest.mark.parametrize(("body", "expected"), FORMULAS.values(), ids=FORMULAS)
def test_macs_of_one_sample_equal_the_formula(body, expected):
    macs = count_macs(capture(Only(body).eval(), (3, 8, 8)))
    assert sum(macs.values()) == expected


def test_nodes_that_multiply_nothing_are_left_out():
    program = capture(Only(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 5, 1))).eval(), (3, 8, 8))
    assert list(count_macs(program).values()) == [64 * 12, 64 * 20]


def test_counting_computes_nothing_and_changes_nothing():
    program = capture(Only(nn.Conv2d(3, 4, 1)).eval(), (3, 8, 8))
    before = program.graph_module.code
    image = torch.randn(2, 3, 8, 8)
    expected = program.module()(image)
    assert count_macs(program) == count_macs(program)
    assert program.graph_module.code == before
    torch.testing.assert_close(program.module()(image), expected, rtol=0, atol=0)
