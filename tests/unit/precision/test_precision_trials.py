"""Which segments stay in float32: the most harmful first, no more than needed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dyce_calibration.recorder import record
from dyce_calibration.records import Records
from dyce_export.precision import trials
from dyce_export.precision.lower import _range_rows
from dyce_export.precision.trials import Bench, Change, Limits, Method, Trial, best_trial
from dyce_export.progress import Progress
from dyce_runtime import load
from dyce_runtime.bundle.reader import Bundle, open_bundle
from dyce_runtime.errors import DataError, VerificationError
from dyce_runtime.inputs.datasets import Dataset
from tests.bundles import CLASSES


class Harms:
    """A bench on which every lowered segment takes its part of the agreement, and of the accuracy."""

    def __init__(self, harms: Sequence[float], loss: float = 0.0) -> None:
        self.segments = tuple(f"segment_{k:02d}" for k in range(len(harms)))
        self._harms, self._loss = dict(zip(self.segments, harms, strict=True)), loss
        self.tried: list[tuple[str, ...]] = []
        self.counts: list[int] = []
        self.samples: list[list[int]] = []

    def attempt(self, kept: Sequence[str], samples: Any, progress: Progress) -> Trial:
        self.tried.append(tuple(kept))
        self.counts.append(len(samples))
        self.samples.append(samples.tolist())
        lowered = set(self.segments) - set(kept)
        agreement = 1 - sum(self._harms[one] for one in lowered)
        manifest, records = cast("Any", None), cast("Any", None)
        return Trial(tuple(kept), manifest, records, Change(agreement, 0.9, 0.9 - self._loss * len(lowered)))


DEFAULT = Limits()


def best(bench: Harms, limits: Limits = DEFAULT, count: int = 5000) -> Trial:
    split = np.array(["temperature", "search", "certification", "test", "search"])[np.arange(count) % 5]
    return best_trial(cast("Bench", bench), split, limits, Progress())


def test_everything_is_lowered_if_that_is_within_the_limits() -> None:
    bench = Harms([0.002, 0.003])
    assert best(bench).kept == ()
    assert set(bench.tried) == {()}
    assert bench.counts[-1] == 5000, "the figures of a bundle rest on all samples"


def test_the_most_harmful_segments_stay_and_no_more() -> None:
    bench = Harms([0.02, 0.001, 0.03, 0.002])
    assert best(bench).kept == ("segment_00", "segment_02")
    assert bench.counts.count(5000) == 1, "all samples are run where few of them say that it is worth it"


def test_accuracy_counts_as_well() -> None:
    assert best(Harms([0.001, 0.0], loss=0.008)).kept == ("segment_00",)


def test_if_nothing_helps_the_best_is_named_with_what_was_asked() -> None:
    with pytest.raises(VerificationError, match=r"98\.0%.*segment_01.*kept in float32.*99\.0%") as caught:
        best(Harms([0.02, 0.3]))
    assert "--min-agreement" in str(caught.value.hint)


@given(
    st.lists(st.floats(0, 0.2), min_size=1, max_size=6),
    st.floats(0.5, 1.0),
)
def test_what_is_found_is_within_the_limits_and_lowers_something(harms: list[float], asked: float) -> None:
    bench = Harms(harms)
    try:
        found = best(bench, Limits(asked, 1.0))
    except VerificationError:
        assert 1 - min(harms) < asked
    else:
        assert found.change.agreement >= asked
        assert len(found.kept) < len(harms)


def test_few_samples_to_search_on_are_all_used() -> None:
    bench = Harms([0.02, 0.0])
    best(bench, count=10)
    assert bench.samples == [[1, 4, 6, 9]] * 3 + [[1, 4, 6, 9], list(range(10))]


# --- which samples have a say ----------------------------------------------------------------------------------------


@pytest.fixture
def recorded(tiny_bundle: Path) -> tuple[Bundle, Dataset, Records]:
    """A bundle, pictures and their records, in four splits."""
    random = np.random.default_rng(5)
    pictures = random.integers(0, 256, (200, 4, 4, 3), dtype=np.uint8)
    bundle, data = open_bundle(tiny_bundle), Dataset("made", pictures, random.integers(0, CLASSES, 200))
    split = np.array(["temperature", "search", "certification", "test"])[np.arange(200) % 4]
    with load(tiny_bundle, threads=1) as session:
        records = record(session, data, split)
    return bundle, data, records.with_classes(labels=records.predictions[:, -1])  # the full model is always right


@pytest.mark.parametrize("split", ["temperature", "search", "certification", "test"])
def test_only_samples_to_search_on_say_what_a_trial_changes(
    recorded: tuple[Bundle, Dataset, Records], split: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bundle, data, known = recorded
    of_split = (known.split == split)[:, None]
    wrong = np.where(of_split, (known.labels[:, None] + 1) % CLASSES, known.predictions)
    harmed = replace(known, scores=np.where(of_split, np.float32(0), known.scores)).with_classes(wrong)
    monkeypatch.setattr(trials, "record", lambda *arguments: harmed)
    monkeypatch.setattr(trials, "write_lowered", lambda *arguments: bundle.manifest)
    monkeypatch.setattr(trials, "Session", lambda *arguments: nullcontext())
    method = Method("int8", cast("Any", None), lambda kept: cast("Any", None), "onnxruntime")
    change = Bench(bundle, method, known, data, tmp_path).attempt([], np.arange(200), Progress()).change
    assert (change.agreement == 1 and change.now == change.before) == (split != "search")


def test_ranges_come_from_pictures_that_were_not_recorded(recorded: tuple[Bundle, Dataset, Records]) -> None:
    _, data, known = recorded
    part = known.take(np.arange(150))
    assert (_range_rows(data, part) >= 150).all()


def test_ranges_never_come_from_pictures_that_certify_or_test(recorded: tuple[Bundle, Dataset, Records]) -> None:
    _, data, known = recorded
    assert {*known.split[_range_rows(data, known)]} == {"temperature", "search"}
    held = known.split == "test"
    with pytest.raises(DataError, match=r"every picture .* used to certify or test the bundle"):
        _range_rows(data.take(np.flatnonzero(held)), known)


def test_of_many_pictures_few_are_read_for_ranges(recorded: tuple[Bundle, Dataset, Records], tmp_path: Path) -> None:
    _, _, known = recorded
    there = [tmp_path / f"{number}.png" for number in range(4 * 256)]
    for path in there:
        path.write_bytes(path.name.encode())
    paths = [there[row // 10] if row % 10 == 0 else tmp_path / "gone.png" for row in range(10 * len(there) - 9)]
    assert len(_range_rows(Dataset("many", paths), known)) == 256
