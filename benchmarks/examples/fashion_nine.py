"""Fashion-MNIST with nine exit points: the base, heads of all five types, and their records, for other benchmarks.

``python -m benchmarks.examples.fashion_nine`` trains the base on 50,000 of the training images (nine blocks of two 3x3
convolutions, widths 32, 64 and 128, about 124 MMACs) and exports it with all heads at all positions through the command
line. The other 10,000 training images, on which nothing was trained, are its ``--val``. It takes an hour and a half on
two cores; completed steps stay in ``benchmarks/.cache/fashion_nine``.

``unseen()`` returns the bundle's records, ``tested()`` records of the 10,000 test images, made with its pieces.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from benchmarks.digits import ResidualNet
from benchmarks.examples import fashion_mnist
from dyce_calibration.recorder import record
from dyce_calibration.records import Records
from dyce_calibration.search.costs import CostTable, macs_of
from dyce_runtime import load
from dyce_runtime.bundle.reader import RECORDS, open_bundle
from dyce_runtime.inputs.datasets import open_dataset

CACHE = Path("benchmarks/.cache/fashion_nine")
BUNDLE = CACHE / "nine.dyce"
EPOCHS = 8
HEAD_EPOCHS = 12


def make_model() -> torch.nn.Module:
    """Return the untrained base."""
    return ResidualNet(widths=(32,) * 3 + (64,) * 3 + (128,) * 3, strides=(1, 1, 1, 2, 1, 1, 2, 1, 1))


def prepare(data: Path) -> None:
    """Train the base and export it, unless that is in the cache."""
    files = fashion_mnist.divide(data)
    weights = CACHE / "base.pt"
    torch.manual_seed(0)
    fashion_mnist.trained(make_model(), files["fit"], weights, epochs=EPOCHS, bf16=True)
    if not BUNDLE.is_dir():
        exits, heads = ",".join(map(str, range(1, 10))), ["--heads", "all", "--epochs", str(HEAD_EPOCHS)]
        fashion_mnist.export("benchmarks.examples.fashion_nine:make_model", weights, exits, files, BUNDLE, *heads)
    if not (CACHE / "test.npz").is_file():
        with load(BUNDLE) as session:
            pictures = open_dataset(f"{data}#test")
            record(session, pictures, np.full(len(pictures), "test")).save(CACHE / "test.npz")


def unseen() -> Records:
    """Return the records of the 10,000 images on which nothing was trained, with the splits of the bundle."""
    return Records.load(BUNDLE / RECORDS)


def tested() -> Records:
    """Return the records of the 10,000 test images."""
    return Records.load(CACHE / "test.npz")


def chosen_on() -> Records:
    """Return the records of all unseen images on which no temperature was fitted.

    A bundle searches on a part of them only, since it needs the others for certificates and its report.
    """
    found = unseen()
    return found.take(found.split != "temperature")


def costs() -> CostTable:
    """Return the cost table of the bundle in multiply-accumulates."""
    return macs_of(open_bundle(BUNDLE, check_hashes=False).manifest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=fashion_mnist.DEBIAN, help="folder with the four IDX files")
    prepare(parser.parse_args().data)


if __name__ == "__main__":
    main()
