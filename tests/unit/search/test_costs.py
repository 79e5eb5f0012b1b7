import msgspec
import pytest

from dyce_calibration.search.costs import CostTable, read_costs
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
        ({"spans": {"2": {"image": 1.0}}}, "a span from 2 to image; expected exits of the backbone"),
        ({"spans": {"image": {"3": 1.0}}}, "a span from image to 3; expected exits of the backbone"),
        ({"spans": {"image": {"2": -1.0}}}, "the span from image to 2 costs -1.0 ms"),
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
    with pytest.raises(DataError, match=r"nowhere\.json cannot be read: No such file"):
        read_costs(tmp_path / "nowhere.json")


def test_with_all_spans_the_cuts_are_paid_with_the_heads():
    table = msgspec.structs.replace(
        GOOD, backbone={"2": 3.0, "5": 6.0, "final": 11.0}, heads={"2": {"a": 0.5}, "5": {}}
    )
    spanned = table.with_all_spans().check()
    assert spanned.backbone == pytest.approx({"2": 27 / 11, "5": 54 / 11, "final": 9.0})
    assert spanned.heads == {"2": {"a": 1.5}, "5": {}}
    assert GOOD.with_all_spans().with_all_spans() == GOOD.with_all_spans()
    faster = msgspec.structs.replace(table, full=12.0, spans={"image": {"5": 5.0}})
    assert faster.with_all_spans() == msgspec.structs.replace(faster, spans={})
