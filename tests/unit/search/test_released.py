from dataclasses import replace

import numpy as np
import pytest

from dyce_calibration.search.costs import CostTable
from dyce_calibration.search.released import read_released_costs, read_released_records, write_released
from dyce_runtime.errors import DataError
from tests.unit.test_records import make_records

HEADS = (("1", "a"), ("1", "b"), ("2", "a"), ("2", "b"))
COSTS = CostTable(
    "macs", {"1": 30.0, "2": 60.0, "final": 100.0}, {"1": {"a": 1.0, "b": 2.0}, "2": {"a": 3.0, "b": 4.0}}, full=100.0
)


@pytest.fixture
def records():
    found = make_records()
    return replace(found.with_columns([0, 1, 2, 2]), heads=HEADS)


@pytest.fixture
def files(tmp_path, records):
    paths = tmp_path / "search.npz", tmp_path / "macs.json"
    write_released(records, COSTS, *paths)
    return paths


def test_what_is_written_comes_back(records, files):
    costs = read_released_costs(files[1])
    assert costs == COSTS
    back = read_released_records(files[0], costs, "search")
    assert back.heads == HEADS
    for name in ("predictions", "scores", "labels"):
        np.testing.assert_array_equal(getattr(back, name), getattr(records, name))
    assert set(back.split) == {"search"}


def test_the_top_one_of_several_predictions_counts(records, files):
    with np.load(files[0]) as file:
        arrays = {name: file[name] for name in file.files}
    for name in ("preds", "confs"):
        arrays[name] = np.concatenate([arrays[name], np.zeros_like(arrays[name])], axis=2)
    np.savez(files[0], **arrays)
    back = read_released_records(files[0], COSTS, "search")
    np.testing.assert_array_equal(back.predictions, records.predictions)


def test_two_files_hold_different_samples(files):
    a, b = (read_released_records(files[0], COSTS, split) for split in ("search", "test"))
    assert not np.isin(a.hashes, b.hashes).any()


def test_a_trailing_cost_of_the_base_is_ignored(files):
    text = files[1].read_text().replace('"macs":[1.0,3.0]', '"macs":[1.0,3.0,0]')
    files[1].write_text(text)
    assert read_released_costs(files[1]) == COSTS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "does not hold costs of the DyCE release"),
        (
            '{"head":[{"name":"a","macs":[1]}],"backbone":{"macs":[1,2,3]}}',
            "head a has 1 costs; expected one for each",
        ),
        ('{"head":[],"backbone":{"macs":[3,2]}}', "costs 2.0 macs up to exit final"),
        ('{"head":[{"name":"a","macs":[-1]}],"backbone":{"macs":[1,2]}}', "head a at exit 1 costs -1.0"),
        ('{"head":[],"backbone":{"macs":[]}}', "no costs of the backbone"),
    ],
)
def test_costs_that_are_wrong_are_refused(tmp_path, content, message):
    (tmp_path / "macs.json").write_text(content)
    with pytest.raises(DataError, match=message):
        read_released_costs(tmp_path / "macs.json")


def test_records_for_other_costs_are_refused(files):
    with pytest.raises(DataError, match=r"preds has shape \(5, 40, 1\); expected \(3, 40, k\)"):
        read_released_records(
            files[0], CostTable("macs", COSTS.backbone, {"1": {"a": 1.0}, "2": {"a": 1.0}}, 100.0), "x"
        )


def test_confidences_out_of_range_are_refused(files):
    with np.load(files[0]) as file:
        arrays = {name: file[name] for name in file.files}
    arrays["confs"][2, 7] = np.nan
    np.savez(files[0], **arrays)
    with pytest.raises(DataError, match="scores hold nan for sample 7 in column 2; expected a number from 0 to 1"):
        read_released_records(files[0], COSTS, "search")


def test_heads_that_differ_between_exits_cannot_be_written(tmp_path, records):
    fewer = records.with_columns([1, 2, 3])
    with pytest.raises(DataError, match="the heads differ from exit to exit"):
        write_released(fewer, COSTS, tmp_path / "r.npz", tmp_path / "c.json")
