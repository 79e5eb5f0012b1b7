"""Savers through the whole export: found, recorded, put before a base, searched, run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dyce_export
from benchmarks.digits import INPUT, ResidualNet, train
from dyce_calibration.heads.temperature import softmax
from dyce_calibration.heads.training import Recipe
from dyce_calibration.recorder import record, recorded_pictures
from dyce_calibration.records import Records
from dyce_export import cascade as cascade_module
from dyce_export import pipeline
from dyce_export.cascade import export_cascade, export_source, prepare_cascade
from dyce_export.options import Options
from dyce_export.progress import Progress
from dyce_export.savers import sequence as sequence_module
from dyce_export.savers.resolve_saver import Savers
from dyce_export.sources.source import from_module
from dyce_runtime import Configuration, Session, load, open_bundle
from dyce_runtime.bundle.configuration import ExitSetting
from dyce_runtime.bundle.manifest import BUILTIN, FINAL
from dyce_runtime.bundle.reader import RECORDS
from dyce_runtime.errors import BundleError, DataError, UsageError
from dyce_runtime.inputs.datasets import open_dataset
from dyce_runtime.inputs.preprocessing import preprocess
from tests.integration.digits import Digits
from tests.unit.cli import command

pytestmark = pytest.mark.usefixtures("same_graphs_once")

DATA = {"data": "digits#train", "val": "digits#test"}
GREY = {"mean": INPUT.mean, "std": INPUT.std, "crop_pct": 1.0}


def dyce(*arguments: object) -> tuple[int, Any]:
    """The command in this process: its status and its document."""
    done = command.dyce_here(*map(str, arguments), "--json", "--quiet")
    return done.returncode, json.loads(done.stdout)


def learned(*shape: tuple[int, ...], edge: int = 16, seed: int = 0) -> nn.Module:
    """A small network, trained for a moment."""
    data = open_dataset("digits#train")
    way = msgspec.structs.replace(INPUT, resize=edge, crop=(edge, edge))
    pixels = torch.from_numpy(preprocess(data.images(range(640)), way))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = ResidualNet(*shape)
        train(model, pixels, torch.from_numpy(data.labels[:640]), epochs=6, batch=64)
    return model.eval()


@pytest.fixture(scope="module")
def small() -> nn.Module:
    return learned((8, 16), (2, 2))


@pytest.fixture(scope="module")
def smaller() -> nn.Module:
    return learned((4, 8), (2, 2))


@pytest.fixture(scope="module")
def cascade(digits: Digits, small: nn.Module, smaller: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two savers before the digits model with two exits; the dearer one is named first."""
    path = tmp_path_factory.mktemp("cascade") / "digits.dyce"
    source = from_module(digits.model, input_size=(1, 16, 16), **GREY)
    export_source(source, ["3", "5"], path, savers=[small, smaller], **DATA)
    return path


def by_hand(models: list[nn.Module], temperatures: list[float], thresholds: list[float], pixels: Tensor) -> list[int]:
    """Which model answers each picture, in torch."""
    answers = []
    with torch.inference_mode():
        for row in range(len(pixels)):
            sure = [
                softmax(model(pixels[row : row + 1]).numpy(), temperature).max()
                for model, temperature in zip(models, temperatures, strict=True)
            ]
            answers.append(
                next((n for n, (s, t) in enumerate(zip(sure, thresholds, strict=True)) if s > t), len(models))
            )
    return answers


def test_savers_run_in_the_order_of_their_cost_and_read_what_the_base_reads(cascade: Path):
    manifest = open_bundle(cascade).manifest
    assert [exit.id for exit in manifest.exits] == ["saver0", "saver1", "3", "5", "final"]
    assert manifest.savers[0].model.macs < manifest.savers[1].model.macs < manifest.model.macs
    assert {input.tensor for network in manifest.networks for input in network.inputs} == {"image"}
    assert manifest.verification is not None
    assert manifest.verification.verdict == "passed"
    assert {"saver0 logits", "saver1 logits", "logits", "exit 3"} <= set(manifest.verification.seams)
    assert Records.load(cascade / RECORDS).heads[:2] == (("saver0", BUILTIN), ("saver1", BUILTIN))


def test_a_cascade_answers_as_torch_does_model_after_model(
    cascade: Path, digits: Digits, small: nn.Module, smaller: nn.Module
):
    data = open_dataset("digits#test")
    pixels = torch.from_numpy(preprocess(data.images(range(100)), INPUT))
    with load(cascade, threads=1) as session:
        thresholds = np.median(Records.load(cascade / RECORDS).scores[:, :2], axis=0).tolist()
        session.use(
            Configuration(
                "mine", {f"saver{n}": ExitSetting(BUILTIN, threshold) for n, threshold in enumerate(thresholds)}
            )
        )
        heads = [session.manifest.exits[n].heads[0] for n in range(2)]
        result = session(pixels.numpy())
    models = [smaller, small]
    expected = by_hand(models, [head.temperature for head in heads], thresholds, pixels)
    assert {0, 1, 2} == set(expected), "every model answers some"
    assert [min(exit, 2) for exit in result.exit.tolist()] == expected
    with torch.inference_mode():
        logits = [*(model(pixels).numpy() for model in models), digits.logits(pixels.numpy())]
    for row, number in enumerate(expected):
        np.testing.assert_allclose(result.logits[row], logits[number][row], rtol=1e-3, atol=1e-3)


def test_configurations_are_chosen_over_savers_and_exits_together(cascade: Path):
    bundle = open_bundle(cascade)
    used = {exit for entry in bundle.configurations.front for exit in entry.exits}
    assert {"saver0", "saver1"} <= used
    assert used & {"3", "5"}
    cheapest = bundle.configurations.front[0]
    assert cheapest.search is not None
    assert cheapest.search.cost < 0.1, "a saver alone"


def test_a_saver_with_exits_and_pictures_of_its_own_goes_before_a_finished_bundle(
    digits: Digits, small: nn.Module, tmp_path: Path
):
    saver = export_source(
        from_module(learned((4, 8, 8), (2, 1, 1), edge=8), input_size=(1, 8, 8), **GREY),
        ["1"],
        tmp_path / "s.dyce",
        **DATA,
    )
    pictures = ("--data", "digits#train", "--val", "digits#test")
    status, document = dyce("export", digits.path, "--saver", saver.path, *pictures, "-o", tmp_path / "all.dyce")
    assert status == 0, document
    assert document["exits"] == ["saver0.1", "saver0", "2", "4", "6", "final"]
    own, base = (Records.load(path / RECORDS) for path in (saver.path, digits.path))
    records = Records.load(tmp_path / "all.dyce" / RECORDS)
    rows = [own.hashes.tolist().index(hash) for hash in records.hashes.tolist()]
    np.testing.assert_array_equal(records.scores[:, :2], own.scores[rows])
    np.testing.assert_array_equal(records.scores[:, 2:], base.scores)
    with load(tmp_path / "all.dyce", threads=1) as session:
        inputs = session.preprocess(open_dataset("digits#test").images(range(5)))
        assert {name: images.shape[2:] for name, images in inputs.items()} == {
            "image": (16, 16),
            "saver0_image": (8, 8),
        }  # type: ignore[union-attr]
        session.use("fast")
        assert session(inputs).configuration.name == "fast"


def test_a_cascade_is_lowered_with_thresholds_of_its_own(cascade: Path, tmp_path: Path):
    pictures = ("--data", "digits#train", "--val", "digits#test")
    limits = ("--min-agreement", 0, "--max-precision-loss", 1)
    status, document = dyce(
        "lower", cascade, "--precision", "float16,uint8", *pictures, *limits, "-o", tmp_path / "b.dyce"
    )
    assert status == 0, document
    pixels = preprocess(open_dataset("digits#test").images(range(50)), INPUT)
    with load(tmp_path / "b.dyce", "onnxruntime", precision="float32", threads=1) as plain:
        exact = {exit: exits_alone(plain, exit, pixels) for exit in ("saver0", "saver1", "3", "final")}
    for precision, error in (("float16", 0.02), ("uint8", 0.5)):
        with load(tmp_path / "b.dyce", "onnxruntime", precision=precision, threads=1) as session:
            assert [saver.id for saver in session.manifest.savers] == ["saver0", "saver1"]
            assert "saver0" in {exit for entry in session.bundle.configurations.front for exit in entry.exits}
            for exit, logits in exact.items():
                found = exits_alone(session, exit, pixels)
                assert 0 < np.abs(found - logits).max() < error * np.abs(logits).max(), (precision, exit)


def exits_alone(session: Session, exit: str, pixels: np.ndarray) -> np.ndarray:
    """Logits of a configuration with which every sample leaves at one exit."""
    index = session.manifest.exit_index(exit)
    heads = session.manifest.exits[index].heads
    session.use(Configuration(exit, {} if exit == FINAL else {exit: ExitSetting(heads[0].type, 0.0)}))
    result = session(pixels)
    assert set(result.exit.tolist()) == {index}
    return result.logits


def test_what_an_interrupted_export_has_finished_is_not_done_again(
    digits: Digits, small: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def export() -> None:
        source = from_module(digits.model, input_size=(1, 16, 16), **GREY)
        options = Options(recipe=Recipe(epochs=1))
        export_source(source, ["3"], tmp_path / "b.dyce", savers=[small], **DATA, options=options)

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cascade_module, "join", interrupted)
        with pytest.raises(KeyboardInterrupt):
            export()
    assert [path.name for path in tmp_path.iterdir()] == ["b.dyce.work"]
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "calibrate", lambda *_, **__: pytest.fail("computed again"))
        export()
    assert [path.name for path in tmp_path.iterdir()] == ["b.dyce"]
    assert [exit.id for exit in open_bundle(tmp_path / "b.dyce").manifest.exits] == ["saver0", "3", "final"]


# --- exit sequence networks ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sequence(digits: Digits, smaller: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with exits and its heads, given a saver and an exit sequence network."""
    path = tmp_path_factory.mktemp("sequence") / "digits.dyce"
    base, like = open_bundle(digits.path), {"input_size": (1, 16, 16), **GREY}
    savers = Savers((from_module(smaller, **like),))
    options = Options(sequence="esn1x16", recipe=Recipe(epochs=10))
    prepared = prepare_cascade(base, [], savers, DATA["data"], DATA["val"], options, Progress())
    export_cascade(prepared, path, options=options, progress=Progress())
    return path


def test_an_exit_sequence_network_is_a_further_head_at_every_exit(sequence: Path, digits: Digits):
    manifest = open_bundle(sequence).manifest
    types = {exit.id: [head.type for head in exit.heads] for exit in manifest.exits}
    before = {exit.id: [head.type for head in exit.heads] for exit in digits.export.manifest.exits[:-1]}
    assert types == {"saver0": [BUILTIN], **{id: [*own, "esn1x16"] for id, own in before.items()}, "final": [BUILTIN]}
    assert manifest.verification is not None
    assert manifest.verification.seams.keys() >= {f"exit_{int(id):02d}_esn1x16" for id in before}
    assert sorted(path.name for path in sequence.parent.iterdir()) == [sequence.name], "nothing is left beside it"


def test_what_was_recorded_is_what_the_pieces_say(sequence: Path):
    known = Records.load(sequence / RECORDS)
    with load(sequence, threads=1) as session:
        found = record(session, recorded_pictures(open_dataset("digits#test"), known), known.split)
    assert found.heads == known.heads
    assert (found.predictions == known.predictions).mean() > 0.999
    np.testing.assert_allclose(found.scores, known.scores, atol=1e-4)


def test_a_sequence_knows_more_than_the_saver(sequence: Path):
    records = Records.load(sequence / RECORDS)
    right = {head: float((records.predictions[:, k] == records.labels).mean()) for k, head in enumerate(records.heads)}
    assert right["6", "esn1x16"] > right["saver0", BUILTIN]


def test_a_sequence_is_lowered_with_the_rest(sequence: Path, tmp_path: Path):
    pictures = ("--data", "digits#train", "--val", "digits#test")
    limits = ("--min-agreement", 0, "--max-precision-loss", 1)
    status, document = dyce("lower", sequence, "--precision", "uint8", *pictures, *limits, "-o", tmp_path / "b.dyce")
    assert status == 0, document
    with load(tmp_path / "b.dyce", "onnxruntime", precision="uint8", threads=1) as session:
        known = Records.load(session.bundle.file(RECORDS))
        found = record(session, recorded_pictures(open_dataset("digits#test"), known), known.split)
        assert ("4", "esn1x16") in found.heads
        np.testing.assert_allclose(found.scores, known.scores, atol=1e-4)


def test_what_an_interrupted_sequence_has_seen_is_not_computed_again(
    digits: Digits, smaller: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def export() -> None:
        source = from_module(digits.model, input_size=(1, 16, 16), **GREY)
        options = Options(sequence="esn1x16", recipe=Recipe(epochs=1))
        export_source(source, ["3"], tmp_path / "b.dyce", savers=[smaller], **DATA, options=options)

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sequence_module, "train_sequence", interrupted)
        with pytest.raises(KeyboardInterrupt):
            export()
    with monkeypatch.context() as patch:
        patch.setattr(sequence_module.Seen, "__call__", lambda *_: pytest.fail("computed again"))
        patch.setattr(sequence_module, "_checked", lambda made, *_: made.manifest)
        export()
    assert [path.name for path in tmp_path.iterdir()] == ["b.dyce"]


def test_a_base_without_exits_has_no_place_for_a_sequence(digits: Digits, smaller: nn.Module, tmp_path: Path):
    with pytest.raises(UsageError, match="without exits"):
        dyce_export.export(
            digits.model, [], tmp_path / "b", input_size=(1, 16, 16), savers=[smaller], esn="esn1x16", **GREY, **DATA
        )
    with pytest.raises(UsageError, match="there is no exit sequence network 'esn1x30'"):
        dyce_export.export(digits.model, ["3"], tmp_path / "b", input_size=(1, 16, 16), esn="esn1x30", **GREY, **DATA)


def test_a_base_that_was_never_recorded_is_refused(digits: Digits, smaller: nn.Module, tmp_path: Path):
    dyce_export.export(digits.model, ["3"], tmp_path / "bare.dyce", input_size=(1, 16, 16), **GREY)
    savers = Savers((from_module(smaller, input_size=(1, 16, 16), **GREY),))
    with pytest.raises(BundleError, match=r"bare.dyce has no records to judge new heads by"):
        prepare_cascade(
            open_bundle(tmp_path / "bare.dyce"), [], savers, DATA["data"], None, Options(sequence="esn1x16"), Progress()
        )


def test_other_pictures_than_the_base_was_made_with_are_refused(digits: Digits, smaller: nn.Module, tmp_path: Path):
    base = open_bundle(digits.path)
    savers = Savers((from_module(smaller, input_size=(1, 16, 16), **GREY),))
    options = Options(sequence="esn1x16")
    other = tmp_path / "other.npz"
    pictures = np.random.default_rng(0).integers(0, 256, (40, 16, 16), dtype=np.uint8)
    np.savez(other, images=pictures, labels=np.arange(40) % 10)
    prepared = prepare_cascade(base, [], savers, str(other), DATA["val"], options, Progress())
    with pytest.raises(DataError, match=r"no picture of .* is one that the heads of .* were fitted on"):
        export_cascade(prepared, tmp_path / "b.dyce", options=options, progress=Progress())
    assert not (tmp_path / "b.dyce").exists()


def test_without_data_a_cascade_shows_structure_and_speed(digits: Digits, small: nn.Module, tmp_path: Path):
    dyce_export.export(digits.model, [], tmp_path / "b.dyce", input_size=(1, 16, 16), savers=[small], **GREY)
    with load(tmp_path / "b.dyce", threads=1) as session:
        assert [exit.id for exit in session.manifest.exits] == ["saver0", "final"]
        assert session.configuration.name == "full"
        session.use("probe")
        pixels = preprocess(open_dataset("digits#test").images(range(20)), INPUT)
        np.testing.assert_array_equal(session.run_uncut(pixels), digits.logits(pixels).argmax(1))
        assert set(session(pixels).exit.tolist()) <= {0, 1}


@pytest.mark.parametrize(
    ("saver", "message"),
    [
        (lambda: ResidualNet((64,) * 6, (1,) * 6), "a saver has to be cheaper than the base"),
        (lambda: ResidualNet((4,), (2,), classes=11), "has 11 classes and ResidualNet has 10; a saver has to answer"),
    ],
)
def test_a_model_that_cannot_be_a_saver_is_refused_before_anything_is_written(
    digits: Digits, saver: Callable[[], nn.Module], message: str, tmp_path: Path
):
    with pytest.raises(UsageError, match=message):
        dyce_export.export(digits.model, [3], tmp_path / "b.dyce", input_size=(1, 16, 16), savers=[saver()], **GREY)
    assert list(tmp_path.iterdir()) == []


def test_savers_of_savers_and_twice_the_same_are_refused(
    cascade: Path, digits: Digits, small: nn.Module, tmp_path: Path
):
    source = from_module(digits.model, input_size=(1, 16, 16), **GREY)
    with pytest.raises(UsageError, match="has savers of its own"):
        export_source(source, ["3"], tmp_path / "b.dyce", savers=[cascade])
    single = export_source(from_module(small, input_size=(1, 16, 16), **GREY), ["1"], tmp_path / "s.dyce")
    with pytest.raises(UsageError, match=r"saver ResidualNet .* was given twice"):
        export_source(source, ["3"], tmp_path / "b.dyce", savers=[single.path, single.path])


def test_select_saver_says_what_each_model_would_save_and_records_it_once(
    digits: Digits, small: nn.Module, smaller: nn.Module, tmp_path: Path
):
    for name, model in (("small", small), ("smaller", smaller)):
        export_source(
            from_module(model, input_size=(1, 16, 16), name=name, **GREY), ["1"], tmp_path / f"{name}.dyce", **DATA
        )
    (tmp_path / "broken.pt").write_bytes(b"nothing")
    arguments = (
        "select-saver", digits.path, "--pool", f"{tmp_path}/small.dyce,{tmp_path}/smaller.dyce,{tmp_path}/broken.pt",
        "--data", "digits#train", "--val", "digits#test", "--cache", tmp_path / "cache", "--by", "macs",
    )  # fmt: skip
    status, document = dyce(*arguments, "-o", tmp_path / "best.dyce")
    assert status == 0, document
    assert [entry["name"] for entry in document["skipped"]] == [f"{tmp_path}/broken.pt"]
    base = Records.load(digits.path / RECORDS).of_split("search")
    for entry in document["candidates"]:
        manifest = open_bundle(entry["name"]).manifest
        share = plain_share(Records.load(Path(entry["name"]) / RECORDS).of_split("search"), base)
        assert entry["delta_macs"] == pytest.approx(
            manifest.model.macs / digits.export.manifest.model.macs - share, abs=1e-9
        )
        assert entry["delta_ms"] == pytest.approx(entry["ms"] / document["base"]["ms"] - share, abs=1e-9)
    deltas = [entry["delta_macs"] for entry in document["candidates"]]
    assert deltas == sorted(deltas)
    best = open_bundle(document["bundle"]).manifest
    assert best.savers[0].model == open_bundle(document["candidates"][0]["name"]).manifest.model


def plain_share(saver: Records, base: Records) -> float:
    """The published sweep, threshold after threshold and sample after sample."""
    rows = {hash: row for row, hash in enumerate(saver.hashes.tolist())}
    for k in range(101):
        taken = won = lost = 0
        for place, hash in enumerate(base.hashes.tolist()):
            row = rows[hash]
            if saver.scores[row, -1] > np.float32(1 - k / 100):
                taken += 1
                won += int(saver.predictions[row, -1] == base.labels[place])
                lost += int(base.predictions[place, -1] == base.labels[place])
        if won < lost:
            break
    return taken / len(base)


def test_a_pool_that_was_recorded_is_not_recorded_again(digits: Digits, tmp_path: Path):
    nets = "benchmarks.examples.fashion_savers"
    arguments = (
        "select-saver", digits.path, "--pool", f"{nets}:nets.slim8,{nets}:nothing",
        "--data", "digits#train", "--val", "digits#test", "--cache", tmp_path, "--allow-suspicious",  # it is untrained
    )  # fmt: skip
    status, first = dyce(*arguments)
    assert status == 0, first
    (manifest,) = tmp_path.glob("*/manifest.json")
    before = manifest.stat().st_mtime_ns
    status, second = dyce(*arguments)
    assert status == 0, second
    assert [path.stat().st_mtime_ns for path in tmp_path.glob("*/manifest.json")] == [before]
    assert [entry["share"] for entry in first["candidates"]] == [entry["share"] for entry in second["candidates"]]
    assert "has no 'nothing'" in second["skipped"][0]["reason"]
