import msgspec
import pytest

from dyce_calibration.costs import CostTable, read_costs
from dyce_runtime.errors import DataError

GOOD = CostTable("ms", {"2": 3.0, "final": 10.0}, {"2": {"mlp1x1000": 0.5}}, full=9.0, model="abc")


def test_a_table_comes_back_as_it_was_written(tmp_path):
    path = tmp_path / "costs.json"
    path.write_bytes(msgspec.json.encode(GOOD))
    assert read_costs(path) == GOOD


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": {"2": 3.0}}, "expected the exit 'final' last"),
        ({"backbone": {"2": -1.0, "final": 10.0}}, "costs -1.0 ms up to exit 2"),
        (
            {"backbone": {"2": 11.0, "final": 10.0}},
            "costs 10.0 ms up to exit final; expected a number of at least 11.0",
        ),
        ({"backbone": {"2": float("nan"), "final": 10.0}}, "costs nan ms"),
        ({"heads": {"2": {"mlp1x1000": -0.5}}}, "head mlp1x1000 at exit 2 costs -0.5 ms"),
        ({"full": 0.0}, "the full model costs 0.0 ms"),
    ],
)
def test_numbers_that_cannot_be_costs_are_refused(change, message):
    with pytest.raises(DataError, match=message):
        msgspec.structs.replace(GOOD, **change).check()


@pytest.mark.parametrize("content", [b"", b"[]", b'{"unit": "euros"}', b"\xff\xfe"])
def test_a_file_that_is_no_cost_table_is_refused_by_its_name(tmp_path, content):
    (tmp_path / "costs.json").write_bytes(content)
    with pytest.raises(DataError, match=r"costs\.json does not hold a cost table"):
        read_costs(tmp_path / "costs.json")


def test_a_missing_file_is_refused_by_its_name(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.json does not hold a cost table"):
        read_costs(tmp_path / "nowhere.json")
