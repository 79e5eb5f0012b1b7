"""Small torch classifiers with one trait each: 16x16 pictures in, five classes out, fixed weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node

from dyce_export.graph.capture import capture
from dyce_runtime.bundle.manifest import TensorSpec

INPUT_SIZE = (3, 16, 16)
IMAGE = TensorSpec("image", "float32", ("batch", *INPUT_SIZE))
CLASSES = 5


def build(make: Callable[[], nn.Module]) -> nn.Module:
    """A model in eval mode whose weights are the same every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().eval()


def images(count: int, size: tuple[int, int, int] = INPUT_SIZE, seed: int = 0) -> Tensor:
    """Random inputs."""
    return torch.randn(count, *size, generator=torch.Generator().manual_seed(seed))


def captured(make: Callable[[], nn.Module], size: tuple[int, int, int] = INPUT_SIZE) -> ExportedProgram:
    """The program of a freshly built model."""
    return capture(build(make), size)


@cache
def program_of(make: type[nn.Module]) -> ExportedProgram:
    """The same program for all who only read it: a graph that is cut is changed."""
    return captured(make)


def node(program: ExportedProgram, name: str) -> Node:
    """A node of a program by its name."""
    return next(node for node in program.graph.nodes if node.name == name)


class Block(nn.Module):
    """A residual block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm(self.conv(x)))


class Convolutions(nn.Module):
    """Blocks that are attributes, not a list."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.b1, self.b2, self.b3, self.b4 = (Block(8) for _ in range(4))
        self.classifier = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b4(self.b3(self.b2(self.b1(self.stem(x)))))
        return self.classifier(x.mean((2, 3)))


class Chain(nn.Sequential):
    """No shortcuts, no blocks, but dropout."""

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for width in (3, 8, 8, 8):
            layers += [nn.Conv2d(width, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5)]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES))


class Shared(nn.Module):
    """One block that is called three times, and two others."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.again = Block(8)
        self.blocks = nn.Sequential(Block(8), Block(8))
        self.classifier = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(3):
            x = self.again(x)
        return self.classifier(self.blocks(x).mean((2, 3)))


class TokenBlock(nn.Module):
    """Attention and a multilayer perceptron."""

    def __init__(self, width: int, norm: Callable[[int], nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(width), norm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, length, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(*qkv.unbind(0)).transpose(1, 2).reshape(batch, length, width)
        x = x + self.project(attended)
        return x + self.mlp(self.norm2(x))


class Tokens(nn.Module):
    """A vision transformer; its class token is expanded to the size of the batch."""

    def __init__(self, norm: Callable[[int], nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.position = nn.Parameter(torch.randn(1, 17, 16))
        self.blocks = nn.ModuleList(TokenBlock(16, norm) for _ in range(3))
        self.norm, self.classifier = norm(16), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        for block in self.blocks:
            x = block(x)
        return self.classifier(self.norm(x)[:, 0])


class HandNormed(Tokens):
    """A vision transformer with norms that are written by hand."""

    def __init__(self) -> None:
        super().__init__(RootMeanSquare)


class LateToken(nn.Module):
    """A transformer whose class token joins behind its first blocks, as in CaiT."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 4, stride=4)
        self.blocks = nn.ModuleList(TokenBlock(16) for _ in range(2))
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.late = nn.ModuleList(TokenBlock(16) for _ in range(1))
        self.classifier = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        for block in self.late:
            x = block(x)
        return self.classifier(x[:, 0])


class Pair(nn.Module):
    """A step of two streams that never meet inside."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = Block(4), Block(8)

    def forward(self, fine: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor]:
        return self.fine(fine), self.coarse(coarse)


class Branches(nn.Module):
    """Two streams all the way: every cut carries two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 8, 2, stride=2)
        self.steps = nn.ModuleList(Pair() for _ in range(4))
        self.classifier = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        fine, coarse = self.fine(x), self.coarse(x)
        for step in self.steps:
            fine, coarse = step(fine, coarse)
        return self.classifier(torch.cat([fine.mean((2, 3)), coarse.mean((2, 3))], 1))


class ReadsAgain(Convolutions):
    """Looks at the picture again between its blocks: the picture itself is alive at cuts."""

    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Conv2d(3, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b2(self.b1(self.stem(x)))
        y = self.b4(self.b3(y + self.again(x)) + self.again(x))
        return self.classifier(y.mean((2, 3)))


class SequenceFirst(nn.Module):
    """A transformer whose activations are (length, batch, width), as torch's own are by default."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 4, stride=4)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(16, 2, 32) for _ in range(3))
        self.classifier = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).permute(2, 0, 1)
        for layer in self.layers:
            x = layer(x)
        return self.classifier(x.mean(0))


class Folded(nn.Module):
    """Four quadrants of a picture are rows of the batch between the stem and the classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.blocks = nn.Sequential(*(Block(8) for _ in range(4)))
        self.classifier = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        x = self.stem(x).reshape(batch, 8, 2, 8, 2, 8).permute(0, 2, 4, 1, 3, 5).reshape(batch * 4, 8, 8, 8)
        return self.classifier(self.blocks(x).mean((2, 3)).reshape(batch, 32))


class RootMeanSquare(nn.Module):
    """A norm over the last axis, written by hand."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.scale


class Wrapped(nn.Module):
    """One convolution and a classifier, with a last step of the test's choice."""

    def __init__(self, finish: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.conv, self.classifier, self.finish = nn.Conv2d(3, 4, 3), nn.Linear(4, CLASSES), finish

    def forward(self, x: Tensor) -> object:
        return self.finish(self.classifier(F.relu(self.conv(x)).mean((2, 3))))
