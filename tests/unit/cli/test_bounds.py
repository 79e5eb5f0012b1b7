"""Numbers that make no sense: refused where they are typed, with the reason, before anything is opened."""

from __future__ import annotations

import json

import pytest

from dyce_export.cli import console
from dyce_export.cli.main import app

VERBS = {
    "run": ["run", "nowhere.dyce", "cat.jpg"],
    "bench": ["bench", "nowhere.dyce", "--data", "nowhere"],
    "search": ["search", "nowhere.dyce"],
    "compile": ["compile", "nowhere.dyce", "--target", "onnxruntime"],
    "lower": ["lower", "nowhere.dyce", "--precision", "float16", "--data", "nowhere"],
    "export": ["export", "nowhere.pt", "--exits", "1"],
    "select-saver": ["select-saver", "nowhere.dyce", "--pool", "x", "--data", "nowhere"],
}
# Options with a number from 1 on, and with a share of something.
COUNTS = [
    *[("run", "--threads"), ("run", "--batch"), ("bench", "--threads"), ("bench", "--batch"), ("search", "--points")],
    *[("compile", "--max-batch"), ("export", "--epochs"), ("select-saver", "--threads")],
]
SHARES = [
    *[("search", "--epsilon"), ("search", "--delta"), ("export", "--tolerance"), ("export", "--min-agreement")],
    *[("export", "--max-precision-loss"), ("lower", "--min-agreement"), ("lower", "--max-precision-loss")],
    *[("select-saver", "--max-loss"), ("search", "--max-loss"), ("export", "--crop-pct")],
]
HUGE = ("1000000", "2147483648", "9223372036854775808", "1" * 5000)
NO_NUMBERS = ("", "x", "nan", "1e3", "0x10", "\uff11", "1,,2")


def refusal(verb: str, option: str, value: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The message of a usage error that names the option."""
    code = console.run(app, "dyce", [*VERBS[verb], f"{option}={value}", "--json"])
    captured = capsys.readouterr()
    error = json.loads(captured.out)["error"]
    assert (code, error["code"]) == (2, "usage"), captured.err
    assert option.rpartition("-")[2] in error["message"]
    return str(error["message"])


@pytest.mark.parametrize(("verb", "option"), COUNTS)
@pytest.mark.parametrize("value", ["0", "-1", *HUGE, *NO_NUMBERS])
def test_a_count_is_from_one_to_what_a_machine_can_do(
    verb: str, option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refusal(verb, option, value, capsys)


@pytest.mark.parametrize(("verb", "option"), SHARES)
@pytest.mark.parametrize("value", ["-0.1", "1e9", "inf", "-inf", "nan", "x", ""])
def test_a_share_is_from_nought_to_one(verb: str, option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    if option == "--crop-pct":
        pytest.importorskip("torch", reason="exporting needs torch")
    refusal(verb, option, value, capsys)


@pytest.mark.parametrize("option", ["--epsilon", "--delta"])
@pytest.mark.parametrize("value", ["1e-320", "1e-9", "0", "1"])
def test_a_promise_that_nobody_could_test_is_not_made(
    option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refusal("search", option, value, capsys)


@pytest.mark.parametrize("value", ["-1", "9223372036854775808", "x", "1.5"])
def test_a_seed_is_what_a_bundle_can_store(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    refusal("export", "--seed", value, capsys)


@pytest.mark.parametrize(("verb", "option"), COUNTS)
def test_a_bound_comes_with_its_reason(verb: str, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = console.run(app, "dyce", [*VERBS[verb], option, "1000000"])
    assert code == 2
    said = capsys.readouterr().err
    assert "1,024" in said or "100,000" in said or "10,000" in said
    assert any(word in said for word in ("at once", "of its own", "all of the data"))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *[("--input-size", size) for size in ("0,8,8", "3,9223372036854775808,1", "1,1000000,1000000", "3,8", "nan")],
        *[("--mean", mean) for mean in ("nan", "inf", "", "0.5,x")],
        *[("--std", std) for std in ("0", "-1", "nan", "inf")],
        *[("--crop-pct", share) for share in ("1e-320", "0", "nan")],
    ],
)
def test_an_input_that_no_memory_holds_is_refused(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch", reason="exporting needs torch")
    refusal("export", option, value, capsys)
