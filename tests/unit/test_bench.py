"""No test here measures time: a clock that the pieces turn stands in for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import PIL
import pytest

from dyce_runtime import Configuration, Session, load, open_bundle
from dyce_runtime.bench import benchmark, environment, path_macs, save_figures, split_counts
from dyce_runtime.bundle import SPLITS, write_configurations
from dyce_runtime.configuration import BenchFigures, Configurations, Entry
from dyce_runtime.datasets import Dataset
from dyce_runtime.errors import PieceError
from dyce_runtime.preprocessing import preprocess
from tests.bundles import CLASSES, NAMED, Spy, expected, near_threshold, on

SEGMENT_MACS, HEAD_MACS = (16 * 12, 16 * 16, 16 * 16 + 20), 20
EARLY = Configuration("early", on(exit3=0.0))
LATE = Configuration("late", on(exit3=1.0, exit7=1.0))


def make_data(count: int = 40) -> Dataset:
    random = np.random.default_rng(5)
    pictures = random.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return Dataset("made", pictures, random.integers(0, CLASSES, count))


def store_splits(bundle: Path, **hashes: np.ndarray) -> None:
    (bundle / SPLITS).parent.mkdir()
    np.savez(bundle / SPLITS, **hashes)


def only(document: Mapping[str, Any]) -> dict[str, Any]:
    (entry,) = document["configurations"]
    return entry


@pytest.mark.parametrize(
    ("exits", "macs"),
    [
        ({}, np.cumsum(SEGMENT_MACS)),
        (on(exit3=0.5), np.cumsum(SEGMENT_MACS) + HEAD_MACS),
        (on(exit7=0.5), np.cumsum(SEGMENT_MACS) + HEAD_MACS * np.array([0, 1, 1])),
        (on(exit3=0.5, exit7=0.5), np.cumsum(SEGMENT_MACS) + HEAD_MACS * np.array([1, 2, 2])),
    ],
)
def test_a_sample_pays_for_the_backbone_and_every_head_on_its_way(shared_session: Session, exits, macs):
    assert path_macs(shared_session.manifest, Configuration("mine", exits)).tolist() == macs.tolist()


def test_shares_macs_and_accuracy_are_those_of_the_samples(shared_session: Session):
    data = make_data()
    images = preprocess(data.images(range(40)), shared_session.manifest.preprocessing)
    fast = shared_session.bundle.configuration("fast")
    assert not near_threshold(images, fast)
    answer, uncut = expected(images, fast), expected(images, Configuration("full"))
    shares = np.bincount(answer.exit, minlength=3) / 40
    document = benchmark(shared_session, data, ["fast"], batch=7)
    entry = only(document)
    assert list(entry["share_per_exit"]) == ["3", "7", "final"]
    assert list(entry["share_per_exit"].values()) == pytest.approx(shares)
    macs = [192 + 20, 192 + 256 + 40, 192 + 256 + 276 + 40]
    assert entry["macs_share"] == pytest.approx(shares @ macs / sum(SEGMENT_MACS))
    assert entry["accuracy"] == np.mean(answer.label == data.labels)
    assert entry["same_label_as_uncut"] == np.mean(answer.label == uncut.label)
    assert document["uncut"]["accuracy"] == np.mean(uncut.label == data.labels)
    assert (document["samples"], document["batch"]) == (40, 7)


def test_a_limit_takes_samples_from_all_over_the_data(bundle_copy: Path):
    data = make_data(1000)
    store_splits(bundle_copy, quarter=data.hashes[250:500], last=data.hashes[999:])
    with load(bundle_copy) as session:
        document = benchmark(session, data, ["full"], limit=9)
    assert (document["samples"], document["splits"]) == (9, {"quarter": 2, "last": 1, "unseen": 6})


def test_data_without_labels_have_no_accuracy(shared_session: Session):
    document = benchmark(shared_session, Dataset("made", make_data().items), ["fast"])
    assert document["uncut"]["accuracy"] is None
    assert only(document)["accuracy"] is None
    assert only(document)["same_label_as_uncut"] <= 1


def test_every_contender_answers_every_call_and_the_warm_up(spied: Session, spy: Spy):
    benchmark(spied, make_data(4), ["full", EARLY])
    ran = [piece for piece, _ in spy.calls]
    assert (ran.count("full"), ran.count("segment_00")) == (2 * (4 + 5), 4 + 5)


# --- time, by a clock that the pieces turn ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("segment", "verdict"),
    [
        (5.0, "Early exit gains here: early takes 50% of the uncut model's time and 29% of its MACs."),
        (9.6, "Early exit gains here: early takes 96% of the uncut model's time and 29% of its MACs."),
        (9.8, "Early exit gains nothing worth naming here: early takes 0.98 of the uncut model's time, at 29%"),
        (10.2, "Early exit gains nothing worth naming here: early takes 1.02 of the uncut model's time, at 29%"),
        (20.0, "Early exit loses here: the best configuration, early, takes 2.00 times as long as the uncut model"),
    ],
)
def test_the_verdict_says_gain_none_or_loss(clock, spied: Session, segment, verdict):
    clock |= {"full": 10.0, "segment_00": segment}
    document = benchmark(spied, make_data(), [EARLY])
    assert document["verdict"].startswith(verdict)
    assert only(document)["time_ratio_to_uncut"] == pytest.approx(segment / 10)


def test_the_verdict_names_the_best_configuration(clock, spied: Session):
    clock |= {"full": 10.0, "segment_00": 4.0, "segment_01": 4.0, "segment_02": 4.0}
    document = benchmark(spied, make_data(), ["full", LATE, EARLY])
    assert "early takes 40%" in document["verdict"]
    assert [entry["time_ratio_to_uncut"] for entry in document["configurations"]] == pytest.approx([1.0, 1.2, 0.4])


def test_full_alone_allows_no_verdict(clock, spied: Session):
    clock["full"] = 10.0
    assert "nothing can be said" in benchmark(spied, make_data(), ["full"])["verdict"]


def test_the_verdict_warns_of_untrained_heads(clock, untrained_bundle: Path):
    clock |= {"full": 10.0, "segment_00": 4.0}
    with load(untrained_bundle, allow_untrained=True) as session:
        assert benchmark(session, make_data(), [EARLY])["verdict"].endswith("only the speed means anything.")


def test_latencies_are_in_milliseconds_and_throughput_in_samples_per_second(clock, spied: Session):
    clock["full"] = 0.5
    uncut = benchmark(spied, make_data(), ["full"], batch=10)["uncut"]
    assert (uncut["mean_ms"], uncut["p50_ms"], uncut["p99_ms"]) == pytest.approx((500, 500, 500))
    assert uncut["throughput"] == pytest.approx(20)


# --- figures that stay with the bundle -------------------------------------------------------------------------------


def test_figures_are_stored_with_the_configurations_that_were_measured(clock, bundle_copy: Path):
    clock |= {"full": 0.010, "segment_00": 0.004, "segment_01": 0.003}
    data = make_data(20)
    store_splits(bundle_copy, search=data.hashes[:8])
    with load(bundle_copy, threads=1) as session:
        document = benchmark(session, data, ["fast", "full"], batch=2)
        document["configurations"][0] |= {"p50_ms": 5.0, "p90_ms": 8.0, "p99_ms": 9.0}  # the clock knows no quantiles
        save_figures(session.bundle, document)
    stored = open_bundle(bundle_copy).configurations.named
    assert [name for name, entry in stored.items() if entry.bench] == ["full", "fast"]
    found, kept = document["configurations"][0], stored["fast"].bench
    assert kept == BenchFigures(
        p50_ms=found["p50_ms"],
        p90_ms=found["p90_ms"],
        time_ratio=found["time_ratio_to_uncut"],
        accuracy=found["accuracy"],
        samples=20,
        unseen=12,
        batch=2,
        target="onnxruntime",
        threads="1",
        cpu=document["environment"]["cpu"],
        date=document["environment"]["date"],
    )
    assert (stored["full"].bench.p50_ms, stored["full"].bench.time_ratio) == pytest.approx((10, 1))
    assert stored["fast"].exits == NAMED["fast"]


def test_figures_do_not_undo_a_search_that_was_quicker(clock, bundle_copy: Path):
    clock |= {"full": 0.010, "segment_00": 0.004}
    searched = Configurations(named={"full": Entry({}), "fast": Entry(on(exit3=0.1))}, front=(Entry(NAMED["fast"]),))
    with load(bundle_copy, threads=1) as session:
        document = benchmark(session, make_data(4), ["fast", "full"])
        write_configurations(searched, bundle_copy)
        save_figures(session.bundle, document)
    stored = open_bundle(bundle_copy).configurations
    assert stored.named["fast"] == Entry(on(exit3=0.1))
    assert stored.named["full"].bench.p50_ms == pytest.approx(10)
    assert stored.front[0].bench.p50_ms == pytest.approx(document["configurations"][0]["p50_ms"])


# --- the knob, the samples and the machine ---------------------------------------------------------------------------


def test_the_knob_is_left_as_it_was_found(spied: Session, spy: Spy):
    spied.use("accurate")
    benchmark(spied, make_data(4), ["full", "fast"])
    assert spied.configuration.name == "accurate"

    def fail(piece: str) -> None:
        if piece != "full":
            raise PieceError("broken")

    spy.before = fail
    with pytest.raises(PieceError):
        benchmark(spied, make_data(4), ["full", "fast"])
    assert spied.configuration.name == "accurate"


def test_samples_that_made_the_bundle_are_counted_by_their_split(bundle_copy: Path):
    data = make_data(20)
    store_splits(bundle_copy, fitting=data.hashes[:3], search=data.hashes[3:5], test=np.array([1, 2], np.uint64))
    with load(bundle_copy) as session:
        assert split_counts(session, data, np.arange(20)) == {"fitting": 3, "search": 2, "unseen": 15}
        assert split_counts(session, data, np.arange(4, 20)) == {"search": 1, "unseen": 15}


def test_without_stored_splits_all_samples_are_unseen(shared_session: Session):
    assert split_counts(shared_session, make_data(20), np.arange(7)) == {"unseen": 7}


def test_the_environment_names_the_engine_and_its_version(shared_session: Session):
    found = environment(shared_session)
    assert (found["target"], found["engine"]) == ("onnxruntime", onnxruntime.__version__)
    assert (found["threads"], found["pool"]) == ("1", "private")


@pytest.mark.parametrize(("target", "engine"), [("PIL", PIL.__version__), ("abacus", "unknown")])
def test_an_engine_may_come_from_a_distribution_of_another_name(spied: Session, spy: Spy, target, engine):
    spy.name = target
    assert environment(spied)["engine"] == engine
