"""``dyce search`` as a user meets it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from dyce_calibration.search.costs import CostTable
from dyce_calibration.search.released import write_released
from dyce_runtime import open_bundle
from tests.unit.cli.command import dyce_here
from tests.unit.promises.test_choose import COSTS, make_records


def test_search_replaces_the_configurations_of_a_bundle(searchable: Path) -> None:
    before = open_bundle(searchable).configurations
    document = json.loads(dyce_here("search", str(searchable), "--json").stdout)
    after = open_bundle(searchable).configurations
    assert after != before
    assert document["configurations"] == json.loads(msgspec.json.encode(after))
    assert document["method"] == "exact"


def test_costs_of_another_bundle_are_refused_and_nothing_changes(searchable: Path, tmp_path: Path) -> None:
    table = tmp_path / "ms.json"
    heads = {"3": {"mlp1x1000": 1.0}, "7": {"mlp1x1000": 1.0}}
    backbone = {"3": 3.0, "7": 7.0, "final": 10.0}
    table.write_bytes(msgspec.json.encode(CostTable("ms", backbone, heads, 10.0, model="0" * 64)))
    before = (searchable / "configurations.json").read_bytes()
    done = dyce_here("search", str(searchable), "--costs", str(table))
    assert done.returncode == 1
    assert "was measured on another bundle" in done.stderr
    assert (searchable / "configurations.json").read_bytes() == before


def test_a_bundle_searched_by_time_goes_back_to_macs_only_when_told_to(searchable: Path) -> None:
    path = searchable / "configurations.json"
    document = {**json.loads(path.read_bytes()), "unit": "ms", "digest": ""}
    path.write_text(json.dumps(document))
    done = dyce_here("search", str(searchable))
    assert done.returncode == 2
    assert "were chosen by ms; without a cost table they would be chosen by multiply-accumulates" in done.stderr
    assert "--costs macs" in done.stderr
    assert json.loads(path.read_bytes()) == document
    assert dyce_here("search", str(searchable), "--costs", "macs").returncode == 0
    assert open_bundle(searchable).configurations.unit == "macs"
    assert dyce_here("search", str(searchable)).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "expected a bundle or --records"),
        (("--records", "r.npz"), "--records needs --costs"),
        (("BUNDLE", "--test", "t.npz"), "--test goes with --records"),
        (("BUNDLE", "--epsilon", "0"), "epsilon is 0"),
        (("BUNDLE", "--method", "newton"), "no search method"),
        (("BUNDLE", "--max-loss", "0.1", "--max-cost", "0.5"), "do not go together"),
        (("BUNDLE", "--max-cost", "50"), "expected a share of the full model"),
        (("BUNDLE", "--max-cost", "0.001"), "no configuration meets the limit"),
    ],
)
def test_search_refuses_what_makes_no_sense(searchable: Path, arguments: tuple[str, ...], message: str) -> None:
    before = (searchable / "configurations.json").read_bytes()
    done = dyce_here("search", *(str(searchable) if word == "BUNDLE" else word for word in arguments))
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert (searchable / "configurations.json").read_bytes() == before


def test_a_bundle_without_records_cannot_be_searched(tiny_bundle: Path) -> None:
    done = dyce_here("search", str(tiny_bundle))
    assert done.returncode == 1
    assert "has no records to search in" in done.stderr


def test_released_records_are_searched_with_their_costs_and_reported_on_test(tmp_path: Path) -> None:
    renamed = CostTable(
        "macs", {"1": 25.0, "2": 60.0, "final": 100.0}, {"1": COSTS.heads["2"], "2": COSTS.heads["5"]}, full=100.0
    )
    for name, seed in (("search", 0), ("test", 1)):
        records = replace(make_records(300, seed), heads=(("1", "mlp1x1000"), ("2", "mlp1x1000")))
        write_released(records, renamed, tmp_path / f"{name}.npz", tmp_path / "macs.json")
    words = ("search", "--records", "search.npz", "--costs", "macs.json", "--test", "test.npz")
    document = json.loads(dyce_here(*words, "--points", "20", "--json", cwd=tmp_path).stdout)
    assert (document["method"], document["points"]) == ("exact", 20)
    assert document["base"]["search"]["samples"] == document["base"]["test"]["samples"] == 300
    assert len(document["front"]) > 10
    for point in document["front"]:
        assert {"accuracy", "cost", "loss"} <= set(point["search"]) & set(point["test"])
        assert point["certified"] is None
    done = dyce_here(*words, "--points", "20", cwd=tmp_path)
    assert "points of the front" in done.stdout
    assert "probably trained" not in done.stderr


def test_a_model_that_knows_the_samples_to_search_on_is_noticed(tmp_path: Path) -> None:
    for name, quality in (("search", 0.99), ("test", 0.85)):
        records = make_records(300, quality=(0.7, 0.8, quality))
        renamed = replace(records, heads=(("1", "mlp1x1000"), ("2", "mlp1x1000")))
        costs = CostTable(
            "macs", {"1": 25.0, "2": 60.0, "final": 100.0}, {"1": COSTS.heads["2"], "2": COSTS.heads["5"]}, full=100.0
        )
        write_released(renamed, costs, tmp_path / f"{name}.npz", tmp_path / "macs.json")
    words = ("search", "--records", "search.npz", "--costs", "macs.json", "--test", "test.npz", "--points", "5")
    assert "it was probably trained on the former" in " ".join(dyce_here(*words, cwd=tmp_path).stderr.split())


def test_search_says_what_it_changed_and_in_which_unit(searchable: Path, tmp_path: Path) -> None:
    dyce_here("search", str(searchable))
    again = dyce_here("search", str(searchable)).stdout
    assert "Costs were weighed in multiply-accumulates, as before." in again
    assert "as before: full, accurate, balanced, fast" in again
    changed = dyce_here("search", str(searchable), "--max-loss", "0.3").stdout
    assert "new: chosen" in changed
    assert "gone: chosen" in dyce_here("search", str(searchable)).stdout
