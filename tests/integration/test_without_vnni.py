"""8-bit integers on x86 processors without VNNI, emulated: engines there may add products of bytes in 16 bits."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import pytest

from dyce_export.cascade import export_source
from dyce_export.graph.joining import assemble
from dyce_export.precision.cut import write_lowered
from dyce_export.precision.integers import quantiser
from dyce_export.sources.source import from_module
from dyce_runtime import load, open_bundle
from dyce_runtime.bundle.configuration import FULL, Configurations, Entry
from dyce_runtime.bundle.documents import write_document
from dyce_runtime.bundle.reader import CONFIGURATIONS, MANIFEST, files_of, sha256_of
from tests.models import INPUT_SIZE, Convolutions, build

EMULATED = ("qemu-x86_64-static", "-cpu", "Haswell")
# OpenVINO is told by what Linux lists, which in user-mode emulation is the host's processor.
ANSWER = """
import sys
import numpy as np
from dyce_runtime import cpu_features, load
cpu_features.cpu_features = lambda: ()
place, target, *folders = sys.argv[1:]
images = np.load(f"{place}/images.npy")
for number, folder in enumerate(folders):
    with load(folder, target, threads=1) as session:
        np.save(f"{place}/{number}.npy", session(images).logits)
"""


def image_noise(count: int) -> np.ndarray:
    random = np.random.default_rng(0)
    colour = random.normal(scale=2, size=(count, INPUT_SIZE[0], 1, 1))
    return (random.normal(size=(count, *INPUT_SIZE)) + colour).astype(np.float32)


PRECISIONS: tuple[Literal["uint8", "int8"], ...] = ("uint8", "int8")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A network of convolutions in integers of both kinds, with weights of which each is the largest of its scale."""
    place = tmp_path_factory.mktemp("bytes")
    model = build(Convolutions)
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.abs().mean() * parameter.sign()
    export_source(from_module(model, input_size=INPUT_SIZE), ["1", "2"], place / "float32.dyce")
    return [lowered(place, precision) for precision in PRECISIONS]


def lowered(place: Path, precision: Literal["uint8", "int8"]) -> Path:
    network = assemble(open_bundle(place / "float32.dyce"))
    quantised = quantiser(network, {"image": image_noise(40)}, precision)(())
    folder = place / f"{precision}.dyce"
    manifest = write_lowered(network, quantised, precision, folder)
    write_document(Configurations(named={FULL: Entry(exits={})}), folder / CONFIGURATIONS)
    hashes = {name: sha256_of(folder / name) for name in files_of(folder)}
    write_document(msgspec.structs.replace(manifest, files=hashes), folder / MANIFEST)
    return folder


def answered(bundles: Sequence[Path], target: str, place: Path, emulator: Sequence[str] = EMULATED) -> list[np.ndarray]:
    """In one process: emulated, most of its time is that of the start."""
    np.save(place / "images.npy", image_noise(5))
    command = [*emulator, sys.executable, "-c", ANSWER, place, target, *bundles]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [np.load(place / f"{number}.npy") for number in range(len(bundles))]


@pytest.mark.skipif(
    platform.machine() != "x86_64" or not shutil.which(EMULATED[0]), reason="needs x86-64 and its emulator, from QEMU"
)
@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_bytes_give_nearly_the_answers_of_float32(bundles: list[Path], tmp_path: Path, target: str) -> None:
    pytest.importorskip(target)
    with load(bundles[0].parent / "float32.dyce", "onnxruntime", threads=1) as session:
        expected = session(image_noise(5)).logits
    spread = np.abs(expected - expected.mean(axis=0)).max()
    for precision, found in zip(PRECISIONS, answered(bundles, target, tmp_path), strict=True):
        assert np.abs(found - expected).max() <= 0.15 * spread, precision
