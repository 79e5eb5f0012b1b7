from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dyce_calibration.records import Records
from dyce_runtime.errors import DataError

HEADS = (("2", "mlp1x1000"), ("5", "mlp1x1000"), ("5", "mlp2x64"))


def make_records(count: int = 40, seed: int = 0) -> Records:
    """Scores on a coarse grid, so that many are equal."""
    random = np.random.default_rng(seed)
    return Records.of_single_label(
        heads=HEADS,
        predictions=random.integers(0, 3, (count, 4)),
        scores=(random.integers(0, 9, (count, 4)) / 8).astype(np.float32),
        labels=random.integers(0, 3, count),
        hashes=random.integers(0, 2**64, count, dtype=np.uint64),
        split=random.choice(["search", "test", "certification"], count),
    )


def same(a: Records, b: Records) -> bool:
    arrays = ("predictions", "scores", "loss", "cost", "labels", "hashes", "split", "variant")
    return a.heads == b.heads and all(
        np.array_equal(getattr(a, n), getattr(b, n)) and getattr(a, n).dtype == getattr(b, n).dtype for n in arrays
    )


# --- on disk ---------------------------------------------------------------------------------------------------------


def test_records_come_back_as_they_were_saved(tmp_path: Path):
    random, records = np.random.default_rng(1), make_records()
    loss, cost = random.random((2, 40, 4), np.float32)
    records = replace(records, loss=loss, cost=cost, variant=random.choice(["", "half"], 40))
    records.save(tmp_path / "records.npz")
    assert same(Records.load(tmp_path / "records.npz"), records)


def test_records_without_any_head_come_back(tmp_path: Path):
    bare = make_records().with_columns([])
    bare.save(tmp_path / "records.npz")
    assert same(Records.load(tmp_path / "records.npz"), bare)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def text(path: Path) -> None:
    path.write_text("these are no records")


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for place in range(len(content) // 2, len(content) // 2 + 64):
        content[place] ^= 0xFF
    path.write_bytes(content)


def incomplete(path: Path) -> None:
    np.savez(path, exit=np.array(["2"]), head=np.array(["mlp1x1000"]))


def other_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def pickled(path: Path) -> None:
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **{**arrays, "labels": np.array([object()] * 40)})


def lengths_that_differ(path: Path) -> None:
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **{**arrays, "labels": arrays["labels"][:-1]})


def a_head_too_few(path: Path) -> None:
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **{**arrays, "exit": arrays["exit"][:-1], "head": arrays["head"][:-1]})


@pytest.mark.parametrize(
    "damage",
    [empty, text, truncated, flipped, incomplete, other_array, pickled, lengths_that_differ, a_head_too_few],
    ids=lambda damage: damage.__name__.replace("_", " "),
)
def test_a_damaged_file_is_refused_by_its_name(tmp_path: Path, damage):
    path = tmp_path / "records.npz"
    make_records().save(path)
    damage(path)
    with pytest.raises(DataError, match=r"records\.npz does not hold records"):
        Records.load(path)


def test_a_missing_file_is_refused_by_its_name(tmp_path: Path):
    with pytest.raises(DataError, match=r"nowhere\.npz does not hold records"):
        Records.load(tmp_path / "nowhere.npz")


# --- parts -----------------------------------------------------------------------------------------------------------


def test_a_split_holds_its_samples_in_their_order():
    records = make_records()
    part = records.of_split("test")
    rows = np.flatnonzero(records.split == "test")
    assert len(part) == len(rows) > 0
    np.testing.assert_array_equal(part.hashes, records.hashes[rows])
    np.testing.assert_array_equal(part.scores, records.scores[rows])
    assert set(part.split) == {"test"}


def test_a_column_is_found_by_exit_and_head():
    records = make_records()
    assert [records.column(*head) for head in HEADS] == [0, 1, 2]
    with pytest.raises(KeyError):
        records.column("2", "mlp2x64")


def test_a_wrong_prediction_loses_one_and_every_sample_pays_for_the_whole_backbone():
    records = make_records()
    np.testing.assert_array_equal(records.loss, records.predictions != records.labels[:, None])
    assert records.accuracy(1) == pytest.approx((records.predictions[:, 1] == records.labels).mean())
    assert (records.cost == 1).all()
    assert set(records.variant) == {""}


def test_other_classes_bring_their_own_loss():
    records = make_records()
    found = records.with_classes(labels=records.predictions[:, 2])
    assert found.accuracy(2) == 1
    assert same(found.with_classes(labels=records.labels), records)


def test_further_heads_stand_where_they_are_put():
    records = make_records()
    first, further = records.predictions[:, :2], records.scores[:, :2]
    found = records.insert(1, (("3", "a"), ("3", "b")), first, further)
    assert found.heads == (HEADS[0], ("3", "a"), ("3", "b"), *HEADS[1:])
    np.testing.assert_array_equal(found.predictions[:, 1:3], first)
    np.testing.assert_array_equal(found.scores[:, 1:3], further)
    np.testing.assert_array_equal(found.loss[:, 1:3], first != records.labels[:, None])
    assert same(found.with_columns([0, 3, 4]), records)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("predictions", np.zeros((40, 4))),
        ("predictions", np.zeros((40, 4), [("a", int)])),
        ("scores", np.zeros((40, 4), int)),
        ("labels", np.zeros(40, np.float32)),
        ("hashes", np.full(40, "x")),
        ("split", np.zeros(40, int)),
    ],
)
def test_an_array_of_another_type_is_refused(tmp_path: Path, name: str, array: np.ndarray):
    replace(make_records(), **{name: array}).save(tmp_path / "records.npz")
    with pytest.raises(DataError, match=f"the records' {name} are of type .*; expected"):
        Records.load(tmp_path / "records.npz")


def test_a_head_that_was_recorded_twice_is_refused(tmp_path: Path):
    replace(make_records(), heads=(HEADS[0], HEADS[0], HEADS[1])).save(tmp_path / "records.npz")
    with pytest.raises(DataError, match="expected pairs of names, each once"):
        Records.load(tmp_path / "records.npz")


@pytest.mark.parametrize("name", ["scores", "loss", "cost"])
@pytest.mark.parametrize("value", [-0.5, 1.5, np.nan])
def test_a_number_outside_0_to_1_is_refused(name: str, value: float):
    records = make_records()
    getattr(records, name)[3, 1] = value
    with pytest.raises(DataError, match=f"records' {name} hold {value} for sample 3 in column 1"):
        records.check()
