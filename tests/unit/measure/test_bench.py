"""What a benchmark measures and stores. No test here measures time: a clock that the pieces turn stands in for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from dyce_runtime import Configuration, Session, load, open_bundle
from dyce_runtime.bundle.configuration import Configurations, Entry
from dyce_runtime.bundle.measured import BenchFigures, read_measured
from dyce_runtime.bundle.reader import write_configurations
from dyce_runtime.errors import ConfigurationError, DataError, PieceError
from dyce_runtime.execution.plan import path_macs
from dyce_runtime.inputs.datasets import Dataset
from dyce_runtime.inputs.preprocessing import preprocess
from dyce_runtime.measure import bench
from dyce_runtime.measure.bench import benchmark, choose, environment, save_figures, split_counts
from dyce_runtime.measure.machine_state import power_mode
from tests.bundles import HEAD, NAMED, Spy, expected, near_threshold, on
from tests.unit.measure.pictures import EARLY, SEGMENT_MACS, make_data, only, store_splits

HEAD_MACS = 20

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.parametrize(
    ("exits", "macs"),
    [
        # At an exit that is off a sample would pay for the head there, too.
        ({}, np.cumsum(SEGMENT_MACS) + HEAD_MACS * np.array([1, 1, 0])),
        (on(exit3=0.5), np.cumsum(SEGMENT_MACS) + HEAD_MACS * np.array([1, 2, 1])),
        (on(exit7=0.5), np.cumsum(SEGMENT_MACS) + HEAD_MACS * np.array([1, 1, 1])),
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
    # The uncut model and the configuration "full"; the chain and the configuration "early".
    assert (ran.count("full"), ran.count("segment_00")) == (2 * (4 + 5), 2 * (4 + 5))
    assert (ran.count("segment_02"), ran.count("exit_03_linear")) == (4 + 5, 4 + 5)


def test_more_samples_are_answered_than_timed_and_answers_are_those_of_the_router(
    spied: Session, spy: Spy, monkeypatch
):
    monkeypatch.setattr(bench, "MOST_TIMED", 10)
    data = make_data(50)
    images = preprocess(data.images(range(50)), spied.manifest.preprocessing)
    chosen = [spied.bundle.configuration(name) for name in ("full", "accurate", "balanced", "fast")]
    document = benchmark(spied, data, chosen)
    assert (document["samples"], document["timed_samples"]) == (50, 10)
    for entry, configuration in zip(document["configurations"], chosen, strict=True):
        assert not near_threshold(images, configuration)
        answer = expected(images, configuration)
        assert entry["accuracy"] == pytest.approx(np.mean(answer.label == data.labels))
        shares = np.bincount(answer.exit, minlength=3) / 50
        assert list(entry["share_per_exit"].values()) == pytest.approx(shares)


# --- time, by a clock that the pieces turn ---------------------------------------------------------------------------


def test_latencies_are_in_milliseconds_and_throughput_in_samples_per_second(clock, spied: Session):
    clock |= {"full": 0.5, "segment_00": 0.5}
    uncut = benchmark(spied, make_data(), ["full"], batch=10)["uncut"]
    assert (uncut["mean_ms"], uncut["p50_ms"], uncut["p99_ms"]) == pytest.approx((500, 500, 500))
    assert uncut["throughput"] == pytest.approx(20)


# --- several sizes of a batch, and the chain -------------------------------------------------------------------------


def test_every_size_of_a_batch_gets_figures_of_its_own(clock, spied: Session, spy: Spy):
    clock |= {"full": 10.0, "segment_00": 5.0}
    spy.before = lambda piece: clock.pass_by(clock.get(piece, 0.0) + (spy.calls[-1][1] > 1) * 10.0)
    document = benchmark(spied, make_data(), [EARLY], batch=[1, 8])
    assert [part["batch"] for part in document["batches"]] == [1, 8]
    one, eight = document["batches"]
    assert document.items() >= one.items()
    assert (one["uncut"]["mean_ms"], eight["uncut"]["mean_ms"]) == pytest.approx((10_000, 20_000))
    assert eight["uncut"]["throughput"] == pytest.approx(8 / 20)
    # Segment and head: 5 s and 10 s for each of the two.
    assert (only(one)["time_saved"], only(eight)["time_saved"]) == pytest.approx((0.5, -0.25))
    assert "early takes 50% (" in one["verdict"]
    assert eight["verdict"].startswith("With 8 pictures per call early exit loses: the best configuration, early,")


def test_a_last_batch_that_is_not_full_is_answered_and_not_timed(spied: Session, spy: Spy, clock):
    spy.before = lambda piece: clock.pass_by(spy.calls[-1][1] * (piece in ("full", "segment_00")))
    document = benchmark(spied, make_data(10), ["full"], batch=4)
    assert [rows for piece, rows in spy.calls if piece == "full"].count(2) == 2
    assert document["uncut"]["p50_ms"] == document["uncut"]["mean_ms"] == pytest.approx(4000)
    assert document["uncut"]["throughput"] == pytest.approx(1)
    assert document["samples"] == 10


def test_the_chain_says_what_cutting_costs_when_every_seam_is_paid(clock, spied: Session):
    clock |= {"full": 10.0, "segment_00": 4.0, "segment_01": 5.0, "segment_02": 6.0, "span_00_01": 1.0}
    clock |= {"exit_03_linear": 50.0, "exit_07_linear": 50.0}
    for batch in (1, 4):
        document = benchmark(spied, make_data(8), ["accurate"], batch=batch)
        assert document["chain"]["mean_ms"] == pytest.approx(15_000)
        assert document["chain"]["time_ratio_to_uncut"] == pytest.approx(1.5)
        assert document["chain"]["same_label_as_uncut"] == 1
        assert document["chain"]["accuracy"] == document["uncut"]["accuracy"]


def test_without_configurations_and_chain_the_uncut_model_runs_alone(clock, spied: Session, spy: Spy):
    clock["full"] = 10.0
    document = benchmark(spied, make_data(4), [], chain=False)
    assert {piece for piece, _ in spy.calls} == {"full"}
    assert (document["chain"], document["configurations"]) == (None, [])
    assert document["uncut"]["mean_ms"] == pytest.approx(10_000)
    assert document["verdict"].startswith("Only the uncut model was measured")


def test_more_pictures_per_call_than_there_are_is_refused_before_anything_runs(spied: Session, spy: Spy):
    with pytest.raises(DataError, match="there are 6 pictures for --batch 7"):
        benchmark(spied, make_data(40), ["full"], batch=[2, 7, 4], limit=6)
    assert spy.calls == []


# --- which configurations --------------------------------------------------------------------------------------------


def test_all_are_the_named_ones_and_those_of_the_front_that_have_no_name(bundle_copy: Path):
    front = (Entry(on(exit3=0.1)), Entry(NAMED["fast"]), Entry(on(exit7=0.2)))
    named = {name: Entry(exits) for name, exits in NAMED.items()}
    write_configurations(Configurations(named=named, front=front), bundle_copy)
    chosen = choose(open_bundle(bundle_copy), ["fast", "all"])
    assert [one.name for one in chosen] == ["fast", "full", "accurate", "balanced", "front 1", "front 3"]
    assert (chosen[-1].exits, chosen[0].exits) == (on(exit7=0.2), NAMED["fast"])


def test_a_configuration_that_is_not_there_is_named_with_those_that_are(bundle_copy: Path):
    with pytest.raises(ConfigurationError, match=r"no configuration 'slow' in this bundle; it has: full, accurate"):
        choose(open_bundle(bundle_copy), ["all", "slow"])


def test_figures_of_the_front_are_stored_with_it_and_of_several_sizes_the_first(clock, bundle_copy: Path):
    clock |= {"full": 10.0, "segment_00": 4.0, "segment_01": 1.0, "segment_02": 1.0, "span_00_01": 1.0}
    named = {name: Entry(exits) for name, exits in NAMED.items()}
    write_configurations(Configurations(named=named, front=(Entry(on(exit3=0.0)),)), bundle_copy)
    with load(bundle_copy, threads=1) as session:
        document = benchmark(session, make_data(8), choose(session.bundle, ["all"]), batch=[2, 1])
        save_figures(session.bundle, document)
    opened = open_bundle(bundle_copy)
    kept = read_measured(opened).figures(opened.configurations.front[0])
    assert kept is not None
    assert (kept.p50_ms, kept.time_ratio, kept.batch) == pytest.approx((4000, 0.4, 2))


# --- figures that stay with the bundle -------------------------------------------------------------------------------


def test_figures_are_stored_with_the_configurations_that_were_measured(clock, bundle_copy: Path):
    clock |= {"full": 0.010, "segment_00": 0.004, "segment_01": 0.003}
    data = make_data(20)
    store_splits(bundle_copy, search=data.hashes[:8])
    with load(bundle_copy, threads=1) as session:
        document = benchmark(session, data, ["fast", "full"], batch=2)
        document["configurations"][0] |= {"p50_ms": 5.0, "p90_ms": 8.0, "p99_ms": 9.0}  # the clock knows no quantiles
        save_figures(session.bundle, document)
    opened = open_bundle(bundle_copy)
    stored = {name: read_measured(opened).figures(entry) for name, entry in opened.configurations.named.items()}
    assert [name for name, kept in stored.items() if kept] == ["full", "fast"]
    found, kept = document["configurations"][0], stored["fast"]
    assert kept == BenchFigures(
        p50_ms=found["p50_ms"],
        p90_ms=found["p90_ms"],
        time_ratio=found["time_ratio_to_uncut"],
        time_ratio_range=tuple(found["time_ratio_range"]),
        accuracy=found["accuracy"],
        loss=found["loss"],
        loss_error=found["loss_error"],
        samples=20,
        unseen=12,
        batch=2,
        target="onnxruntime",
        threads="1",
        cpu=document["environment"]["cpu"],
        date=document["environment"]["date"],
    )
    assert found["exits"] == {id: {"head": HEAD, "threshold": 0.5} for id in ("3", "7")}
    assert stored["full"] is not None
    assert (stored["full"].p50_ms, stored["full"].time_ratio) == pytest.approx((10, 1))


def test_figures_do_not_undo_a_search_that_was_quicker(clock, bundle_copy: Path):
    clock |= {"full": 0.010, "segment_00": 0.004}
    searched = Configurations(named={"full": Entry({}), "fast": Entry(on(exit3=0.1))}, front=(Entry(NAMED["fast"]),))
    with load(bundle_copy, threads=1) as session:
        document = benchmark(session, make_data(4), ["fast", "full"])
        write_configurations(searched, bundle_copy)
        save_figures(session.bundle, document)
    opened = open_bundle(bundle_copy)
    measured, known = read_measured(opened), opened.configurations
    assert known == searched
    assert measured.figures(known.named["fast"]) is None
    kept = [measured.figures(entry) for entry in (known.named["full"], known.front[0])]
    assert [one and one.p50_ms for one in kept] == pytest.approx([10, document["configurations"][0]["p50_ms"]])


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


def test_only_the_files_that_were_measured_are_read_to_count_them(bundle_copy: Path, tmp_path: Path):
    (tmp_path / "there.png").write_bytes(b"a picture")
    data = Dataset("files", [tmp_path / "gone.png", tmp_path / "there.png", tmp_path / "gone.png"])
    store_splits(bundle_copy, search=data.take(np.array([1])).hashes)
    with load(bundle_copy) as session:
        assert split_counts(session, data, np.array([1])) == {"search": 1, "unseen": 0}


def test_without_stored_splits_all_samples_are_unseen(shared_session: Session):
    assert split_counts(shared_session, make_data(20), np.arange(7)) == {"unseen": 7}


def test_the_environment_names_the_engine_and_its_version(shared_session: Session):
    found = environment(shared_session)
    assert (found["target"], found["engine"]) == ("onnxruntime", onnxruntime.__version__)
    assert found["precision"] == "float32"
    assert (found["threads"], found["pool"]) == ("1", "private")
    assert found.items() >= power_mode().items()
