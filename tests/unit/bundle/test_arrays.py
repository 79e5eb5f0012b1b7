"""Arrays in files: nothing is unpickled, and whatever a file holds instead is answered in words."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dyce_calibration.records import Records
from dyce_runtime import open_bundle
from dyce_runtime.bundle.arrays import read_arrays, read_splits
from dyce_runtime.bundle.reader import RECORDS, SPLITS, TEST_VECTORS
from dyce_runtime.bundle.test_vectors import read_vectors
from dyce_runtime.errors import BundleError, DataError, DyceError
from dyce_runtime.monitoring.drift import read_expected
from tests.bundles import with_vectors


class RunsCode:
    """Unpickling it writes a file."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.witness,)


NAMES = ("images", "logits", "confidences", "probe", "exit", "head", "predictions", "labels", "hashes", "split")


def objects(path: Path) -> None:
    bomb = np.empty(1, object)
    bomb[0] = RunsCode(path.with_name("it ran"))
    np.savez(path, **dict.fromkeys(NAMES, bomb))  # type: ignore[arg-type]


def bare_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(RunsCode(path.with_name("it ran"))))


def one_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def cut(path: Path) -> None:
    np.savez(path, **dict.fromkeys(NAMES, np.arange(1000)))  # type: ignore[arg-type]
    path.write_bytes(path.read_bytes()[:-2000])


def too_large(path: Path) -> None:
    """A header that claims more than any machine holds."""
    head = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000, 8), }"
    head = head.ljust(118 - 1) + b"\n"
    with zipfile.ZipFile(path, "w") as file:
        for name in NAMES:
            file.writestr(f"{name}.npy", b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + b"x" * 64)


def no_header(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        for name in NAMES:
            file.writestr(f"{name}.npy", b"\x93NUMPY\x01\x00\x40\x00" + b"(" * 64)


def encrypted(path: Path) -> None:
    np.savez(path, **dict.fromkeys(NAMES, np.arange(3)))  # type: ignore[arg-type]
    content = bytearray(path.read_bytes())
    for at in range(len(content) - 4):
        if content[at : at + 4] in (b"PK\x01\x02", b"PK\x03\x04"):
            content[at + (8 if content[at + 2] == 1 else 6)] |= 1
    path.write_bytes(content)


KINDS: list[Callable[[Path], None]] = [objects, bare_pickle, one_array, cut, too_large, no_header, encrypted]
KINDS += [Path.touch, Path.mkdir, os.mkfifo, lambda path: path.unlink(missing_ok=True)]
READERS: dict[str, Callable[[Path], object]] = {
    RECORDS: lambda path: Records.load(path / RECORDS),
    f"{RECORDS} as expected": lambda path: read_expected(path / RECORDS),
    SPLITS: lambda path: read_splits(open_bundle(path, check_hashes=False)),
    TEST_VECTORS: lambda path: read_vectors(open_bundle(path, check_hashes=False)),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("write", KINDS, ids=lambda write: write.__name__)
def test_whatever_stands_in_for_arrays_is_refused(
    reader: str, write: Callable[[Path], None], bundle_copy: Path
) -> None:
    path = bundle_copy / reader.partition(" ")[0]
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    write(path)
    if not path.is_file() and reader in (SPLITS, f"{RECORDS} as expected"):
        return  # a bundle may be without
    with pytest.raises(DyceError) as caught:
        READERS[reader](bundle_copy)
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message
    assert not path.with_name("it ran").exists()


@pytest.mark.parametrize(
    "splits", [{"heads": np.zeros(3)}, {"heads": np.zeros((2, 2), np.uint64)}, {"heads": np.array(["a"])}]
)
def test_splits_are_hashes(splits: dict[str, np.ndarray], bundle_copy: Path) -> None:
    (bundle_copy / SPLITS).parent.mkdir(exist_ok=True)
    np.savez(bundle_copy / SPLITS, **splits)  # type: ignore[arg-type]
    with pytest.raises(BundleError, match=r"split heads is .*; expected uint64"):
        read_splits(open_bundle(bundle_copy, check_hashes=False))


@pytest.mark.parametrize(
    "changes",
    [
        {"logits": np.zeros((8, 99), np.float32)},
        {"logits": np.zeros((0, 4), np.float32)},
        {"logits": np.float32(3)},
        {"scores": np.zeros((8, 3), np.float64)},
        {"images": np.zeros((8, 3, 4), np.float32)},
        {"probe": np.array(["x", "y"])},
    ],
    ids=["classes", "none", "scalar", "dtype", "count", "text"],
)
def test_test_vectors_of_another_model_are_refused(changes: dict[str, np.ndarray], bundle_copy: Path) -> None:
    bundle = open_bundle(with_vectors(bundle_copy))
    assert len(read_vectors(bundle).logits) == 8
    with np.load(bundle_copy / TEST_VECTORS) as file:
        arrays = {**file, **changes}
    np.savez(bundle_copy / TEST_VECTORS, **arrays)
    with pytest.raises(BundleError, match=next(iter(changes))):
        read_vectors(bundle)


def test_a_reader_raises_the_error_that_it_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere.npz does not hold records: No such file or directory"):
        read_arrays(tmp_path / "nowhere.npz", "records", error=DataError)
