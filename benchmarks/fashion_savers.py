"""Fashion-MNIST with savers: a base of 495 MMACs and a pool of small networks that could run before it."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch

from benchmarks import fashion_mnist
from benchmarks.digits import ResidualNet

CACHE = Path("benchmarks/.cache/fashion_savers")
EPOCHS = 20
BASE_EPOCHS = 10

#: Name to widths and strides of the blocks.
SHAPES = {
    "slim8": ((8, 8, 16, 16, 32, 32), (2, 1, 2, 1, 1, 1)),
    "short16": ((16, 32, 64, 64), (2, 2, 2, 1)),
    "fine8": ((8, 8, 16, 16, 32, 32), (1, 1, 2, 1, 2, 1)),
    "slim16": ((16, 16, 32, 32, 64, 64), (2, 1, 2, 1, 2, 1)),
    "slim24": ((24, 24, 48, 48, 96, 96), (2, 1, 2, 1, 2, 1)),
    "slim32": ((32, 32, 64, 64, 128, 128), (2, 1, 2, 1, 2, 1)),
}
#: What makes them, for the command line: ``benchmarks.fashion_savers:nets.slim8``.
nets = SimpleNamespace(**{name: partial(ResidualNet, *shape) for name, shape in SHAPES.items()})


def make_base() -> torch.nn.Module:
    """The untrained base: that of :mod:`benchmarks.fashion_nine` at twice the width, about 495 MMACs."""
    return ResidualNet(widths=(64,) * 3 + (128,) * 3 + (256,) * 3, strides=(1, 1, 1, 2, 1, 1, 2, 1, 1))


def prepare(data: Path) -> None:
    """Train the pool and the base; what is in the cache is kept, and what was interrupted goes on."""
    files = fashion_mnist.divide(data)
    for name in SHAPES:
        torch.manual_seed(0)
        fashion_mnist.trained(getattr(nets, name)(), files["fit"], CACHE / f"{name}.pt", epochs=EPOCHS, bf16=True)
    torch.manual_seed(0)
    fashion_mnist.trained(make_base(), files["fit"], CACHE / "base.pt", epochs=BASE_EPOCHS, bf16=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=fashion_mnist.DEBIAN, help="folder with the four IDX files")
    prepare(parser.parse_args().data)


if __name__ == "__main__":
    main()
