"""What was measured on this machine belongs to one bundle, one configuration, one target, and does not go with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from dyce_runtime import open_bundle
from dyce_runtime.bundle.configuration import Entry, ExitSetting
from dyce_runtime.bundle.measured import (
    Benched,
    BenchFigures,
    MeasuredHere,
    Tuning,
    read_measured,
    tuning_of,
    write_benched,
    write_tuning,
)
from dyce_runtime.bundle.reader import Bundle
from dyce_runtime.errors import DestinationError
from tests.bundles import HEAD, finish, on


@pytest.fixture
def bundle(bundle_copy: Path, own_cache: Path) -> Bundle:
    return open_bundle(bundle_copy)


def figures(p50_ms: float) -> BenchFigures:
    return BenchFigures(p50_ms, 2 * p50_ms, 0.5, 0.9, 100, 60, 1, "onnxruntime", "1", "a processor", "2026-01-31")


@pytest.mark.parametrize(
    ("entry", "p50_ms"),
    [
        (Entry(on(exit3=0.5, exit7=0.7)), 1.0),
        (Entry(dict(reversed(on(exit3=0.5, exit7=0.7).items()))), 1.0),
        (Entry({}), 3.0),
        (Entry(on(exit3=0.5, exit7=0.75)), None),
        (Entry(on(exit3=0.5)), None),
        (Entry({"3": ExitSetting("mlp9x9", 0.5), "7": ExitSetting(HEAD, 0.7)}), None),
        (Entry({}, gates={"block": 1}), None),
    ],
    ids=["same", "same, written the other way round", "full", "threshold", "exit", "head", "gate"],
)
def test_figures_belong_to_the_very_same_configuration(bundle: Bundle, entry: Entry, p50_ms: float | None):
    write_benched(bundle, [Benched(on(exit3=0.5, exit7=0.7), {}, figures(1.0)), Benched({}, {}, figures(3.0))])
    found = read_measured(bundle).figures(entry)
    assert (found and found.p50_ms) == p50_ms


def test_figures_stay_until_they_are_measured_again(bundle: Bundle):
    write_benched(bundle, [Benched(on(exit3=0.5, exit7=0.6), {}, figures(1.0)), Benched({}, {}, figures(3.0))])
    write_benched(bundle, [Benched({}, {}, figures(4.0))])
    write_tuning(bundle, "onnxruntime", 2, Tuning(16))
    known = read_measured(bundle)
    assert [one.figures.p50_ms for one in known.benched] == [1.0, 4.0]


def test_tuning_belongs_to_a_target_and_its_threads(bundle: Bundle):
    write_tuning(bundle, "onnxruntime", 2, Tuning(16, {"3": 4}))
    write_tuning(bundle, "onnxruntime", None, Tuning(32))
    assert tuning_of(bundle, "onnxruntime", 2) == Tuning(16, {"3": 4})
    assert tuning_of(bundle, "onnxruntime", None).best_batch == 32
    for target, threads in (("onnxruntime", 1), ("openvino", 2)):
        assert tuning_of(bundle, target, threads) == Tuning()


def test_another_bundle_knows_nothing_and_the_bundle_itself_is_not_touched(bundle: Bundle):
    before = {path: path.read_bytes() for path in bundle.path.rglob("*") if path.is_file()}
    write_benched(bundle, [Benched({}, {}, figures(3.0))])
    assert {path: path.read_bytes() for path in bundle.path.rglob("*") if path.is_file()} == before
    finish(bundle.path, producer={"dyce-export": "another"})
    assert read_measured(open_bundle(bundle.path)) == MeasuredHere()


def test_what_is_damaged_is_not_known_and_what_cannot_be_written_is_an_error(bundle: Bundle, own_cache: Path):
    write_tuning(bundle, "onnxruntime", 2, Tuning(16))
    (file,) = own_cache.rglob("measured.json")
    file.write_text('{"tuning": 5}')
    assert read_measured(bundle) == MeasuredHere()
    file.unlink()
    file.mkdir()
    assert read_measured(bundle) == MeasuredHere()
    with pytest.raises(DestinationError, match=r"measured\.json cannot be written") as caught:
        write_tuning(bundle, "onnxruntime", 2, Tuning(16))
    assert "XDG_CACHE_HOME" in caught.value.hint
