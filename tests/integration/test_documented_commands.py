"""What the README and the guide show runs as it is written, and leaves the files that it names."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

timm = pytest.importorskip("timm", reason="the commands name architectures of timm")

ROOT = Path(__file__).parents[2]
COUNTS = {"train": 64, "val": 128, "test": 24}
CLASSES = ("blue", "red")
_EASY = 200


def draw(place: Path, count: int, seed: int) -> None:
    """Pictures of noise in two tints: far apart in most, close in some."""
    random = np.random.default_rng(seed)
    for number in range(count):
        label = number % 2
        noise = random.integers(0, 256, (48, 48, 3)).astype(float)
        noise[..., 0 if label else 2] += random.uniform(5, _EASY)
        folder = place / CLASSES[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.jpg")


def fitted(name: str, folder: Path, path: Path) -> None:
    """Weights that classify the pictures: random features, normalised, and the classifier that least squares gives."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=len(CLASSES))
    config = timm.data.resolve_data_config(model=model)
    transform = timm.data.create_transform(**config)
    files = sorted(folder.rglob("*.jpg"))
    images = torch.stack([transform(Image.open(file)) for file in files])
    labels = torch.tensor([CLASSES.index(file.parent.name) for file in files])
    normalise(model, images[torch.randperm(len(images))])
    with torch.no_grad():
        features = torch.cat(
            [model.forward_head(model.forward_features(part), pre_logits=True) for part in images.split(16)]
        )
        centre, spread = features.mean(0), features.std(0) + 1e-6
        known = ((features - centre) / spread).double()
        target = 8.0 * (torch.nn.functional.one_hot(labels).double() - 0.5)
        weights = known.T @ torch.linalg.solve(known @ known.T + 30 * torch.eye(len(known)).double(), target)
        classifier = model.get_classifier()
        classifier.weight.copy_(weights.T.float() / spread)
        classifier.bias.copy_(-(classifier.weight @ centre))
    torch.save(model.state_dict(), path)


@torch.no_grad()
def normalise(model: torch.nn.Module, images: torch.Tensor) -> None:
    """Give batch normalisation the statistics of the pictures, without which eight bits hold too little."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the average over all batches
    model.train()
    for part in images.split(32):
        model(part)
    model.eval()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the commands take: a trained model, a small one, photos."""
    place = tmp_path_factory.mktemp("documented")
    for seed, (name, count) in enumerate(COUNTS.items()):
        draw(place / "photos" / name, count, seed)
    for name in ("cat.jpg", "dog.jpg"):
        Image.new("RGB", (64, 48), (200, 40, 40)).save(place / name)
    fitted("resnet18", place / "photos/train", place / "model.pt")
    fitted("mobilenetv3_small_100", place / "photos/train", place / "small.pth")
    execute(
        "dyce-export small.pth --arch mobilenetv3_small_100 --exits 4 -o tiny.dyce "
        "--data photos/train --val photos/val",
        place,
    )
    return place


def execute(command: str, place: Path) -> str:
    """Run a command as a shell would, with the programs of this environment first."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "XDG_CACHE_HOME": str(place / "cache")}
    done = subprocess.run(
        ["bash", "-c", command], cwd=place, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def shell_blocks(page: Path) -> list[str]:
    """The blocks of a page, fenced or indented, that call our commands."""
    text = page.read_text()
    fenced = re.findall(r"^```(?:sh|bash)?\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    indented = re.findall(r"(?:^    \S.*\n(?:^    .*\n)*)+", text, re.MULTILINE)
    blocks = [*fenced, *(re.sub(r"^    ", "", block, flags=re.MULTILINE) for block in indented)]
    return [block for block in blocks if re.match(r"dyce(-export)? ", block)]


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


PROMISED = {
    "README.md": (
        "resnet18.dyce/report.html",
        "ms.json",
        "faster.dyce",
        "cascade.dyce",
        "resnet18.dyce/precisions/uint8",
    ),
    "docs/guide.md": ("model.dyce/precisions/int8", "model.dyce/precisions/float16", "cascade.dyce", "cascade2.dyce"),
}


@pytest.mark.slow  # test_docs.py reads the same commands without running them
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", PROMISED)
def test_the_blocks_of_a_page_run_as_written_and_leave_what_they_name(place: Path, name: str) -> None:
    page = ROOT / name
    for left in (*place.glob("cascade*.dyce"), place / "model.dyce"):
        if left.exists():
            execute(f"rm -r {left.name}", place)
    blocks = shell_blocks(page)
    assert blocks
    for block in blocks:
        execute(f"set -e\n{block}", place)
    assert [promised for promised in PROMISED[name] if not (place / promised).exists()] == []
    for code in python_blocks(page):
        execute(f"python - <<'END'\n{code}\nEND", place)
