"""From a model to a bundle and back: what is promised of an export, on scikit-learn's digits and on tiny models."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import dyce_export
from benchmarks.digits import INPUT
from dyce_calibration.heads.temperature import fit_temperature, softmax
from dyce_calibration.heads.training import Recipe
from dyce_calibration.records import Records
from dyce_calibration.search.costs import macs_of
from dyce_calibration.search.problem import make_problem
from dyce_export.cascade import export_source
from dyce_export.cli import console
from dyce_export.cli.main import app
from dyce_export.options import Options
from dyce_export.pipeline import Export
from dyce_export.sources.source import from_module
from dyce_runtime import Session, load
from dyce_runtime.bundle.configuration import Configuration, ExitSetting
from dyce_runtime.bundle.manifest import FINAL
from dyce_runtime.bundle.reader import RECORDS, SPLITS, TEST_VECTORS, open_bundle
from dyce_runtime.errors import ConfigurationError, UsageError
from dyce_runtime.execution.plan import make_plan
from dyce_runtime.inputs.datasets import open_dataset
from tests.integration.digits import EXITS, Digits
from tests.integration.small import ANY_LABELS, labelled, tiny
from tests.manifests import seen
from tests.models import INPUT_SIZE, Branches, Convolutions, Folded, Tokens, build, images
from tests.unit.cli.command import dyce


@pytest.fixture(scope="module")
def session(digits: Digits) -> Session:
    with load(digits.path, threads=1) as session:
        yield session


@pytest.fixture(scope="module")
def test_pixels(session: Session) -> np.ndarray:
    """What the session makes of all pictures of ``digits#test``."""
    data = open_dataset("digits#test")
    return session.preprocess(data.images(range(len(data))))


# --- the bundle ------------------------------------------------------------------------------------------------------


def test_the_bundle_opens_and_its_verification_passed(digits: Digits):
    bundle = open_bundle(digits.path)
    assert bundle.manifest == digits.export.manifest
    assert bundle.configurations == digits.export.configurations
    assert bundle.manifest.verification.verdict == "passed"
    assert bundle.manifest.verification.max_relative_error < 1e-5
    assert bundle.manifest.heads == "trained"
    assert [exit.id for exit in bundle.manifest.exits] == [*EXITS, "final"]


def test_nothing_stands_beside_the_bundle_and_nothing_unlisted_inside(digits: Digits):
    assert [path.name for path in digits.parent.iterdir()] == ["digits.dyce"]
    files = {path.relative_to(digits.path).as_posix() for path in digits.path.rglob("*") if path.is_file()}
    assert files == {*digits.export.manifest.files, "manifest.json", "configurations.json", "report.html"}
    heads = {f"heads/exit_{int(exit):02d}_mlp1x1000.onnx" for exit in EXITS}
    segments = {f"segments/segment_{n:02d}.onnx" for n in range(4)}
    spans = {span.file for span in digits.export.manifest.spans}
    assert set(digits.export.manifest.files) == heads | segments | spans | {RECORDS, SPLITS, TEST_VECTORS}


def test_no_configuration_with_a_name_pays_for_an_exit_that_is_off(digits: Digits):
    manifest, configurations = digits.export.manifest, digits.export.configurations
    for name in configurations.named:
        plan = make_plan(manifest, configurations.get(name))
        assert [len(stretch.body) for stretch in seen(plan, manifest)] == [1] * len(plan.leaves), name


def test_the_report_shows_the_configurations_and_pictures(digits: Digits):
    page = (digits.path / "report.html").read_text()
    assert "share of the time spent" in page
    assert all(name in page for name in digits.export.configurations.named)
    assert page.count("data:image/png") > 0


def test_without_its_extra_a_bundle_has_no_report_and_says_so(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setitem(sys.modules, "bokeh", None)
    for name in [name for name in sys.modules if name.startswith("bokeh.")]:
        monkeypatch.setitem(sys.modules, name, None)
    data = labelled(tmp_path / "data.npz")
    exported = export_source(tiny(), ["2"], tmp_path / "b.dyce", data=data, options=ANY_LABELS)
    assert not (exported.path / "report.html").exists()
    assert "no report.html" in caplog.text
    assert "dyce-export[report]" in caplog.text


def test_the_model_that_was_handed_over_is_unchanged(digits: Digits):
    assert digits.model.training
    assert all(module.training for module in digits.model.modules())
    assert all(parameter.requires_grad for parameter in digits.model.parameters())
    for name, tensor in digits.before.state_dict().items():
        assert torch.equal(digits.model.state_dict()[name], tensor), name


def test_every_stage_is_timed(digits: Digits):
    assert set(digits.export.seconds) == {
        "capture",
        "features",
        "heads",
        "reference",
        "onnx",
        "spans",
        "verify",
        "report",
    }


# --- data ------------------------------------------------------------------------------------------------------------


def test_every_sample_is_in_one_split(digits: Digits):
    samples = digits.export.manifest.splits.samples
    assert samples["heads"] == len(open_dataset("digits#train"))
    held_out = {name: count for name, count in samples.items() if name != "heads"}
    assert list(held_out) == ["temperature", "search", "certification", "test"]
    assert sum(held_out.values()) == len(open_dataset("digits#test"))
    assert held_out["search"] > held_out["test"] > held_out["temperature"] > 0
    assert (digits.export.manifest.splits.unseen, digits.export.manifest.splits.labels) == (True, "data")


def test_no_picture_that_certifies_or_tests_is_looked_at_before(digits: Digits, session: Session):
    held = np.isin(Records.load(digits.path / RECORDS).split, ("certification", "test"))
    pictures = open_dataset("digits#test")
    rows = np.flatnonzero(np.isin(pictures.hashes, Records.load(digits.path / RECORDS).hashes[held]))
    held_images = {image.tobytes() for image in session.preprocess(pictures.images(rows))}
    with np.load(digits.path / TEST_VECTORS) as file:
        assert not held_images & {image.tobytes() for image in file["images"]}


def test_the_splits_are_written_by_content(digits: Digits):
    with np.load(digits.path / SPLITS) as file:
        found = {name: set(file[name].tolist()) for name in file.files}
    assert found["heads"] == set(open_dataset("digits#train").hashes.tolist())
    assert set.union(*(found[name] for name in found if name != "heads")) == set(
        open_dataset("digits#test").hashes.tolist()
    )
    parts = [found[name] for name in ("temperature", "search", "certification", "test")]
    assert sum(map(len, parts)) == len(set.union(*parts))


def test_the_records_are_what_the_session_answers(digits: Digits, session: Session, test_pixels: np.ndarray):
    """Every head on its own: all samples leave there, since every confidence is above zero."""
    records = Records.load(digits.path / RECORDS)
    order = {content: row for row, content in enumerate(open_dataset("digits#test").hashes.tolist())}
    rows = np.array([order[content] for content in records.hashes.tolist()])
    assert len(set(rows)) == len(test_pixels)
    np.testing.assert_array_equal(records.labels, open_dataset("digits#test").labels[rows])
    for column, (exit, head) in enumerate(records.heads):
        session.use(Configuration("one", {exit: ExitSetting(head, 0.0)}))
        result = session(test_pixels[rows])
        assert set(result.exit) == {column}
        np.testing.assert_allclose(result.confidence, records.scores[:, column], atol=1e-5)
        assert (result.label == records.predictions[:, column]).mean() > 0.995  # ties apart
    session.use("full")
    np.testing.assert_allclose(session(test_pixels[rows]).confidence, records.scores[:, -1], atol=1e-5)


def test_temperatures_are_those_that_fit_the_temperature_split(
    digits: Digits, session: Session, test_pixels: np.ndarray
):
    with np.load(digits.path / SPLITS) as file:
        rows = np.isin(open_dataset("digits#test").hashes, file["temperature"])
    labels = open_dataset("digits#test").labels[rows]
    for exit in digits.export.manifest.exits:
        session.use(Configuration("one", {} if exit.id == FINAL else {exit.id: ExitSetting(exit.heads[0].type, 0.0)}))
        result = session(test_pixels[rows])
        expected = fit_temperature(result.logits, labels)
        np.testing.assert_allclose(result.confidence, softmax(result.logits, expected).max(1), atol=1e-4)
        assert all(head.temperature == pytest.approx(expected, rel=1e-3) for head in exit.heads)


def test_heads_learn(digits: Digits):
    """Every one of them; which of them knows more depends, after two epochs, on the processor and its threads.

    The model's own classifier, the last column, is trained for a moment only: on some processors it is right on 37 %.
    """
    records = Records.load(digits.path / RECORDS)
    accuracies = (records.predictions == records.labels[:, None]).mean(0)
    assert accuracies[:-1].min() > 0.5
    assert accuracies[-1] > 0.2, "twice as often as by chance"


@pytest.fixture(scope="module")
def automatic(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Exits and heads chosen from data, of two types at every exit point."""
    source = from_module(digits.model, input_size=(1, 16, 16), mean=INPUT.mean, std=INPUT.std, crop_pct=1.0)
    options = Options(recipe=Recipe(epochs=5), types=("mlp1x1000", "mlp2x32"), max_exits=2)
    path = tmp_path_factory.mktemp("automatic") / "auto.dyce"
    return export_source(source, ["auto"], path, data="digits#train", val="digits#test", options=options)


def test_exits_that_are_chosen_from_data_are_few_and_all_used(automatic: Export):
    *exits, final = automatic.manifest.exits
    assert final.id == "final"
    assert 1 <= len(exits) <= 2
    found = automatic.configurations
    used = {(id, on.head) for e in (*found.named.values(), *found.front) for id, on in e.exits.items()}
    assert used == {(exit.id, head.type) for exit in exits for head in exit.heads}
    assert automatic.manifest.verification.verdict == "passed"
    records = Records.load(automatic.path / RECORDS)
    assert set(records.heads) == used


def test_every_head_of_every_type_answers_as_its_records_say(automatic: Export):
    records = Records.load(automatic.path / RECORDS)
    data = open_dataset("digits#test")
    rows = {hash: row for row, hash in enumerate(data.hashes.tolist())}
    with load(automatic.path, threads=1) as session:
        pixels = session.preprocess(data.images([rows[h] for h in records.hashes[:200].tolist()]))
        for column, (exit, head) in enumerate(records.heads):
            session.use(Configuration("one", {exit: ExitSetting(head, 0.0)}))
            result = session(pixels)
            np.testing.assert_allclose(result.confidence, records.scores[:200, column], rtol=1e-4, atol=1e-5)
            np.testing.assert_array_equal(result.label, records.predictions[:200, column])


def test_exits_cannot_be_chosen_without_data(tmp_path: Path):
    with pytest.raises(UsageError, match="exits cannot be chosen automatically without data"):
        export_source(tiny(), ["auto"], tmp_path / "b.dyce")


@pytest.mark.parametrize(
    ("types", "message"),
    [(("conv1",), "no head type 'conv1'"), ((), "expected at least one"), (("mlp1x8",) * 2, "each once")],
)
def test_head_types_that_make_no_sense_are_refused(types: tuple[str, ...], message: str):
    with pytest.raises(UsageError, match=message):
        Options(types=types)


# --- configurations --------------------------------------------------------------------------------------------------


def test_the_configurations_are_there_and_say_what_they_cost(digits: Digits):
    found = digits.export.configurations
    assert list(found.named)[:4] == ["full", "accurate", "balanced", "fast"]
    assert found.named["full"].exits == {}
    records, costs = Records.load(digits.path / RECORDS), macs_of(digits.export.manifest)
    problems = {split: make_problem(records.of_split(split), costs) for split in ("search", "test")}
    for entry in (*found.named.values(), *found.front):
        assert entry.search == problems["search"].evaluate(problems["search"].setting(entry.exits))
        assert entry.test == problems["test"].evaluate(problems["test"].setting(entry.exits))
        assert entry.search.samples == digits.export.manifest.splits.samples["search"]


@pytest.mark.parametrize("name", ["accurate", "balanced", "fast"])
def test_a_session_sends_samples_where_the_records_say(digits: Digits, session: Session, test_pixels, name):
    with np.load(digits.path / SPLITS) as file:
        rows = np.isin(open_dataset("digits#test").hashes, file["test"])
    session.use(name)
    shares = np.bincount(session(test_pixels[rows]).exit, minlength=4) / rows.sum()
    expected = digits.export.configurations.named[name].test.share_per_exit
    np.testing.assert_allclose(shares, expected, atol=1.5 / rows.sum())


def test_full_answers_exactly_what_torch_answers(digits: Digits, session: Session, test_pixels: np.ndarray):
    session.use("full")
    expected = digits.logits(test_pixels)
    for batch in (1, 7, len(test_pixels)):
        result = session(test_pixels[:batch])
        np.testing.assert_array_equal(result.label, expected[:batch].argmax(1))
        assert set(result.exit) == {3}
    np.testing.assert_allclose(result.logits, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(session.run_uncut(test_pixels), expected.argmax(1))


def test_the_test_vectors_are_reproduced(digits: Digits, session: Session):
    with np.load(digits.path / TEST_VECTORS) as file:
        vectors = dict(file)
    np.testing.assert_allclose(vectors["logits"], digits.logits(vectors["images"]), rtol=1e-4, atol=1e-4)
    head = digits.export.manifest.exits[0].heads[0].type
    settings = {exit: ExitSetting(head, float(t)) for exit, t in zip(EXITS, vectors["probe"], strict=True)}
    session.use(Configuration("probe", settings))
    leaves = np.column_stack([vectors["scores"][:, :-1] > vectors["probe"], np.ones(len(vectors["images"]), bool)])
    np.testing.assert_array_equal(session(vectors["images"]).exit, leaves.argmax(1))
    session.use("full")
    np.testing.assert_allclose(session(vectors["images"]).logits, vectors["logits"], rtol=1e-4, atol=1e-4)


# --- without data ----------------------------------------------------------------------------------------------------


def test_without_data_the_heads_are_untrained_and_said_to_be(untrained: Export):
    manifest = open_bundle(untrained.path).manifest
    assert (manifest.heads, manifest.splits, manifest.model.name) == ("untrained", None, "tiny")
    assert not any(head.trained for exit in manifest.exits[:-1] for head in exit.heads)
    assert list(untrained.configurations.named) == ["full", "probe"]
    assert not (untrained.path / RECORDS).exists()
    assert [exit.module for exit in manifest.exits[:-1]] == ["b1", "b3"]


def test_untrained_heads_answer_only_if_they_are_allowed_to(untrained: Export):
    pixels = images(16).numpy()
    with load(untrained.path, threads=1) as session:
        assert set(session(pixels).exit) == {2}
        with pytest.raises(ConfigurationError, match="never trained"):
            session.use("probe")
    with load(untrained.path, threads=1, allow_untrained=True) as session:
        session.use("probe")
        assert len(session(pixels).label) == 16


def test_the_same_export_gives_the_same_files(untrained: Export, tmp_path: Path):
    again = dyce_export.export(
        build(Convolutions), [1, "b3"], tmp_path / "again.dyce", input_size=INPUT_SIZE, name="tiny"
    )
    assert again.manifest == untrained.manifest
    assert again.configurations == untrained.configurations


def test_the_callers_random_numbers_go_on_as_if_nothing_had_happened(tmp_path: Path):
    torch.manual_seed(3)
    expected = torch.randn(2)
    torch.manual_seed(3)
    export_source(tiny(), ["2"], tmp_path / "tiny.dyce")
    assert torch.equal(torch.randn(2), expected)


@pytest.mark.parametrize("make", [Tokens, Branches, Folded])
def test_other_structures_answer_like_torch_too(make, tmp_path: Path):
    export = export_source(tiny(make), ["1", "2", "3"], tmp_path / "tiny.dyce")
    pixels = images(20)
    with load(export.path, threads=1) as session, torch.inference_mode():
        np.testing.assert_array_equal(session(pixels.numpy()).label, build(make)(pixels).argmax(1).numpy())


# --- held out from the data ------------------------------------------------------------------------------------------


def test_without_val_a_part_of_the_data_is_held_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    data = labelled(tmp_path / "data.npz")
    export = export_source(tiny(), ["2"], tmp_path / "out" / "b.dyce", data=data, options=ANY_LABELS)
    assert "held out" in caplog.text
    splits = export.manifest.splits
    assert not splits.unseen
    assert sum(splits.samples.values()) == 400
    assert splits.samples["heads"] == pytest.approx(280, abs=40)


def test_pictures_in_both_sets_are_counted_in_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    data = labelled(tmp_path / "data.npz")
    export_source(tiny(), ["2"], tmp_path / "out" / "b.dyce", data=data, val=data, options=ANY_LABELS)
    assert "400 of the 400 validation pictures are also in --data" in caplog.text


def test_without_labels_the_heads_imitate_the_model(tmp_path: Path):
    path = tmp_path / "pictures.npz"
    np.savez(path, images=np.random.default_rng(0).integers(0, 256, (400, 16, 16, 3), dtype=np.uint8))
    export = export_source(
        tiny(), ["4"], tmp_path / "out" / "b.dyce", data=path, options=Options(recipe=Recipe(epochs=5))
    )
    assert export.manifest.splits.labels == "base"
    records = Records.load(export.path / RECORDS)
    np.testing.assert_array_equal(records.labels, records.predictions[:, -1])
    assert export.configurations.named["full"].search.accuracy == 1


def test_the_commands_that_an_export_ends_with_can_be_copied(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data, bundle = labelled(tmp_path / "my pictures.npz"), tmp_path / "my bundle.dyce"
    torch.save(build(Convolutions), tmp_path / "model.pt")
    size = ",".join(map(str, INPUT_SIZE))
    words = ["export", tmp_path / "model.pt", "--trust-pickle", "--input-size", size, "--exits", "2", "-o", bundle]
    assert console.run(app, "dyce", [*map(str, words), "--data", str(data), "--allow-suspicious"]) == 0
    commands = [shlex.split(line) for line in capsys.readouterr().out.splitlines() if line.startswith("  dyce ")]
    assert [command[:3] for command in commands] == [["dyce", "run", str(bundle)], ["dyce", "bench", str(bundle)]]
    assert "my pictures.npz[9]" in dyce(*commands[0][1:]).stdout
