"""Interrupted work goes on where it was, and ends as it would have."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from dyce_calibration.heads import features as features_module
from dyce_calibration.heads.features import BATCH, extract_features
from dyce_calibration.heads.resume import fingerprint, folder_for
from dyce_calibration.heads.training import Recipe, train_heads
from dyce_export.writing.staging import kept_work
from dyce_runtime.errors import DataError, DestinationError, VerificationError
from tests.unit.heads.test_features import COUNT, Spy, dataset, prepare
from tests.unit.heads.test_training import features


def stopped_after(count: int) -> Callable[[Iterable[int]], Iterator[int]]:
    """Progress that is interrupted when ``count`` steps are done."""

    def progress(items: Iterable[int]) -> Iterator[int]:
        for number, item in enumerate(items):
            if number == count:
                raise KeyboardInterrupt
            yield item

    return progress


@pytest.fixture
def marked_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features_module, "_SECONDS_BETWEEN_MARKS", 0.0)


# --- features --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("marked_often")
@pytest.mark.parametrize("done", [0, 1, 2])
def test_features_go_on_where_they_were(tmp_path: Path, done: int):
    whole = extract_features(Spy(), dataset(), prepare, tmp_path / "whole", seed=0)
    with pytest.raises(KeyboardInterrupt):
        extract_features(Spy(), dataset(), prepare, tmp_path / "half", seed=0, progress=stopped_after(done))
    spy = Spy()
    found = extract_features(spy, dataset(), prepare, tmp_path / "half", seed=0)
    assert spy.batches == [BATCH, BATCH, 7][done:]
    for a, b in zip((whole.logits, *whole.exits), (found.logits, *found.exits), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(whole.hashes, found.hashes)
    np.testing.assert_array_equal(whole.labels, found.labels)


def test_finished_features_are_only_read(tmp_path: Path):
    extract_features(Spy(), dataset(), prepare, tmp_path, seed=0)
    spy = Spy()
    assert len(extract_features(spy, dataset(), prepare, tmp_path, seed=0)) == COUNT
    assert spy.batches == []


@pytest.mark.usefixtures("marked_often")
def test_what_was_written_after_the_last_mark_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As after a power cut: the files may hold more than was noted."""
    with pytest.raises(KeyboardInterrupt):
        extract_features(Spy(), dataset(), prepare, tmp_path, seed=0, progress=stopped_after(1))
    monkeypatch.setattr(features_module, "_SECONDS_BETWEEN_MARKS", 1e9)
    with pytest.raises(KeyboardInterrupt):
        extract_features(Spy(), dataset(), prepare, tmp_path, seed=0, progress=stopped_after(2))
    spy = Spy()
    found = extract_features(spy, dataset(), prepare, tmp_path, seed=0)
    assert spy.batches == [BATCH, 7]
    assert sorted(found.exits[0][:, 0].astype(int)) == list(range(COUNT))


# --- heads -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{}, {"average": 0.99, "hard_first": True}])
def test_heads_that_were_interrupted_end_as_they_would_have(tmp_path: Path, change: dict[str, float]):
    recipe, types = replace(Recipe(epochs=5, batch=64), **change), ["mlp1x1000", "mlp2x16"]
    whole = train_heads(features(), types, recipe, seed=0)
    state = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        train_heads(features(), types, recipe, seed=0, checkpoint=state, progress=stopped_after(3))
    assert int(torch.load(state)["epochs"]) == 3
    found = train_heads(features(), types, recipe, seed=0, checkpoint=state)
    for a, b in zip(chain(*whole), chain(*found), strict=True):
        for (weight, bias), (same_weight, same_bias) in zip(a.layers, b.layers, strict=True):
            np.testing.assert_array_equal(weight, same_weight)
            np.testing.assert_array_equal(bias, same_bias)


# --- what is damaged -------------------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def objects(path: Path) -> None:
    np.save(path.with_suffix(".npy"), np.array([print, "x"], dtype=object))
    path.with_suffix(".npy").replace(path)


def other(path: Path) -> None:
    torch.save({"other": 1}, path)


def pickled(path: Path) -> None:
    torch.save(Recipe(), path)


DAMAGE = [cut, objects, other, pickled, lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b"\xff\xfe")]


@pytest.mark.usefixtures("marked_often")
@pytest.mark.parametrize("damage", [*DAMAGE, Path.unlink])
@pytest.mark.parametrize("file", ["0.npy", "1.npy", features_module._MARK])
def test_damaged_features_are_computed_again(tmp_path: Path, damage: Callable[[Path], object], file: str):
    whole = extract_features(Spy(), dataset(), prepare, tmp_path, seed=0)
    expected = [np.array(array) for array in (whole.logits, *whole.exits)]
    damage(tmp_path / file)
    spy = Spy()
    found = extract_features(spy, dataset(), prepare, tmp_path, seed=0)
    assert sum(spy.batches) == COUNT
    for a, b in zip(expected, (found.logits, *found.exits), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_heads_are_trained_again(
    tmp_path: Path, damage: Callable[[Path], object], caplog: pytest.LogCaptureFixture
):
    state, recipe = tmp_path / "state.pt", Recipe(epochs=2, batch=64)
    expected = train_heads(features(), ["mlp1x1000"], recipe, seed=0, checkpoint=state)
    damage(state)
    found = train_heads(features(), ["mlp1x1000"], recipe, seed=0, checkpoint=state)
    np.testing.assert_array_equal(found[0][0].layers[0][0], expected[0][0].layers[0][0])
    assert f"{state} cannot be read" in caplog.text


def test_a_fingerprint_that_is_no_text_is_that_of_other_work(tmp_path: Path):
    folder = folder_for(tmp_path / "a", "1234")
    (folder / "fingerprint").write_bytes(b"\xff\xfe")
    (folder / "half").touch()
    assert [path.name for path in folder_for(folder, "1234").iterdir()] == ["fingerprint"]


# --- whose work it is ------------------------------------------------------------------------------------------------


def test_a_folder_is_emptied_for_other_work(tmp_path: Path):
    folder = folder_for(tmp_path / "a" / "b", fingerprint([1, np.arange(3)]))
    (folder / "half").touch()
    assert (folder_for(folder, fingerprint([1, np.arange(3)])) / "half").exists()
    assert not (folder_for(folder, fingerprint([1, np.arange(4)])) / "half").exists()


@pytest.mark.parametrize(
    "parts", [[2, np.arange(3)], [1, np.arange(3.0)], [1], [1, np.arange(3), None], ["1", np.arange(3)], [Recipe()]]
)
def test_everything_counts_for_a_fingerprint(parts: list[object]):
    assert fingerprint(parts) != fingerprint([1, np.arange(3)])


def test_kept_work_vanishes_when_it_has_served(tmp_path: Path):
    with kept_work(tmp_path / "model.dyce") as folder:
        (folder / "features").touch()
    assert list(tmp_path.iterdir()) == []


def work_that_ends(parent: Path, error: BaseException) -> None:
    with kept_work(parent / "model.dyce") as folder:
        (folder / "features").touch()
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), VerificationError("refused"), RuntimeError("a bug")])
def test_work_stays_where_the_same_command_can_use_it(tmp_path: Path, error: BaseException):
    with pytest.raises(type(error)):
        work_that_ends(tmp_path, error)
    with kept_work(tmp_path / "model.dyce") as folder:
        assert (folder / "features").exists()


@pytest.mark.parametrize("error", [DataError("broken pictures"), OSError(28, "No space left on device")])
def test_work_that_would_fail_again_does_not_fill_the_disk(tmp_path: Path, error: Exception):
    with pytest.raises((DataError, DestinationError)):
        work_that_ends(tmp_path, error)
    assert list(tmp_path.iterdir()) == []


def test_two_exports_to_one_place_do_not_mix(tmp_path: Path):
    with kept_work(tmp_path / "model.dyce") as folder:
        (folder / "features").touch()
        with pytest.raises(DestinationError, match="another command writes in"), kept_work(tmp_path / "model.dyce"):
            pass
        assert (folder / "features").exists()
