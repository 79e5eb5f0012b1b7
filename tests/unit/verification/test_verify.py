from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import numpy_helper
from torch import nn

from dyce_calibration.heads.training import TrainedHead, untrained_heads
from dyce_export import pipeline
from dyce_export.cascade import export_source
from dyce_export.graph.backbone import Backbone
from dyce_export.sources.source import from_module
from dyce_export.verification.probes import condition
from dyce_export.verification.verify import (
    Reference,
    compute_reference,
    probe_configuration,
    relative_error,
    verify,
)
from dyce_runtime.bundle.configuration import Configuration, ExitSetting
from dyce_runtime.bundle.reader import Bundle, open_bundle
from dyce_runtime.execution.session import Session
from dyce_targets.cpu.host_context import HostContext
from tests.models import INPUT_SIZE, Convolutions, build, images


@dataclass
class Exported:
    """A good export, what torch says about it, and what was used to compute that."""

    path: Path
    reference: Reference
    probe: Configuration
    model: Callable[..., Any]
    backbone: Backbone
    heads: list[list[TrainedHead]]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    module = build(Convolutions)
    condition(module, images(16, seed=1))
    path = tmp_path_factory.mktemp("verify") / "good.dyce"
    used: list[Any] = []

    def spy(*arguments: Any) -> Reference:
        used.extend(arguments)
        return compute_reference(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "compute_reference", spy)
        export_source(from_module(module, input_size=INPUT_SIZE), ["1", "3"], path)
    model, backbone, heads, probes = used
    reference = compute_reference(model, backbone, heads, probes)
    return Exported(path, reference, probe_configuration(open_bundle(path).manifest, reference), model, backbone, heads)


@pytest.fixture
def damaged(exported: Exported, tmp_path: Path) -> Callable[..., Bundle]:
    """A copy of the bundle with one weight of a piece changed."""

    def damage(file: str, initializer: int, change: Callable[[np.ndarray], np.ndarray]) -> Bundle:
        folder = shutil.copytree(exported.path, tmp_path / "damaged.dyce")
        model = onnx.load(folder / file)
        weights = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) > 1]
        tensor = weights[initializer]
        values = change(numpy_helper.to_array(tensor).copy())
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        onnx.save(model, folder / file)
        return open_bundle(folder, check_hashes=False)

    return damage


def one_percent(weights: np.ndarray) -> np.ndarray:
    return weights * np.float32(1.01)


def test_a_good_export_passes(exported: Exported):
    found = verify(open_bundle(exported.path), exported.reference, exported.probe)
    assert (found.verdict, found.reason) == ("passed", "")
    assert found.max_relative_error == max(found.seams.values()) < 1e-5
    assert set(found.seams) == {
        "exit 1",
        "exit 1 mlp1x1000",
        "exit 3",
        "exit 3 mlp1x1000",
        "logits",
        "full",
        "routed",
    }
    assert (found.exit_agreement, found.exempt, found.samples) == (1.0, 0, len(exported.reference.images))
    assert found.control > 0.1


def test_samples_leave_at_every_exit_while_they_are_verified(exported: Exported):
    first, second = exported.reference.confidences
    thresholds = [setting.threshold for setting in exported.probe.exits.values()]
    early = first > thresholds[0]
    assert 0.3 < early.mean() < 0.7
    assert 0 < (second[~early] > thresholds[1]).sum() < (~early).sum()


@pytest.mark.parametrize(
    ("file", "seam"),
    [
        ("segments/segment_00.onnx", "exit 1"),
        ("segments/segment_01.onnx", "exit 3"),
        ("segments/segment_02.onnx", "logits"),
        ("heads/exit_01_mlp1x1000.onnx", "exit 1 mlp1x1000"),
        ("heads/exit_03_mlp1x1000.onnx", "exit 3 mlp1x1000"),
        ("spans/full.onnx", "full"),
    ],
)
@pytest.mark.parametrize("initializer", [0, -1], ids=["first weight", "last weight"])
def test_weights_that_are_off_by_a_hundredth_fail_and_the_seam_is_named(
    exported: Exported, damaged, file, seam, initializer
):
    found = verify(damaged(file, initializer, one_percent), exported.reference, exported.probe)
    assert found.verdict == "failed"
    assert found.reason.startswith(f"the relative error at {seam} is ")
    assert found.max_relative_error == max(found.seams.values()) > 1e-4


def test_a_piece_that_returns_no_numbers_fails(exported: Exported, damaged):
    found = verify(damaged("spans/full.onnx", 0, lambda weights: weights * np.nan), exported.reference, exported.probe)
    assert found.verdict == "failed"
    assert found.seams["full"] == np.inf


def test_a_looser_tolerance_lets_a_small_error_pass(exported: Exported, damaged):
    bundle = damaged("spans/full.onnx", -1, one_percent)
    found = verify(bundle, exported.reference, exported.probe, tolerance=0.02)
    assert (found.verdict, found.tolerance) == ("passed", 0.02)


def test_a_tolerance_as_large_as_the_signal_shows_nothing(exported: Exported):
    found = verify(open_bundle(exported.path), exported.reference, exported.probe, tolerance=1.0)
    assert found.verdict == "inconclusive"


def test_another_exit_than_torchs_fails_even_if_all_numbers_agree(exported: Exported):
    """A reference whose confidences, not its logits, are those of other samples."""
    shuffled = replace(exported.reference, confidences=[values[::-1] for values in exported.reference.confidences])
    found = verify(open_bundle(exported.path), shuffled, exported.probe)
    assert found.verdict == "failed"
    assert found.exit_agreement < 1
    assert "leave at another exit than in torch" in found.reason


def test_rows_that_change_places_between_segments_fail(exported: Exported, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(HostContext, "keep", lambda context, order, tensors: setattr(context, "rows", len(order)))
    found = verify(open_bundle(exported.path), exported.reference, exported.probe)
    assert found.verdict == "failed"
    assert found.exit_agreement < 1 or found.seams["routed"] > 1e-2


def test_a_model_that_ignores_its_input_is_inconclusive(exported: Exported):
    constant = np.repeat(exported.reference.logits[:1], len(exported.reference.logits), axis=0)
    constant += 1e-6 * exported.reference.logits
    found = verify(
        open_bundle(exported.path), replace(exported.reference, logits=constant.astype(np.float32)), exported.probe
    )
    assert found.verdict == "inconclusive"
    assert "hardly depend on the input" in found.reason


@pytest.mark.parametrize("value", [0.0, np.nan], ids=["zero", "not a number"])
def test_logits_that_say_nothing_are_inconclusive(exported: Exported, value):
    nothing = np.full_like(exported.reference.logits, value)
    found = verify(open_bundle(exported.path), replace(exported.reference, logits=nothing), exported.probe)
    assert found.verdict == "inconclusive"


# --- samples close to a threshold ------------------------------------------------------------------------------------


def probe_at(exported: Exported, first: float) -> Configuration:
    later = exported.probe.exits["3"]
    return Configuration("probe", {"1": ExitSetting(later.head, float(np.float32(first))), "3": later})


def test_a_sample_close_to_a_threshold_is_exempt_and_the_others_count(exported: Exported):
    values = np.sort(exported.reference.confidences[0])
    alone = 1 + int(np.diff(values)[1:-1].argmax())
    found = verify(open_bundle(exported.path), exported.reference, probe_at(exported, values[alone] + 3e-6))
    assert (found.verdict, found.exempt, found.exit_agreement) == ("passed", 1, 1.0)


def test_a_sample_that_leaves_elsewhere_fails_though_another_is_exempt(exported: Exported):
    confidences = exported.reference.confidences[0].copy()
    values = np.sort(confidences)
    alone = 1 + int(np.diff(values)[1:-1].argmax())
    confidences[confidences.argmin()] = 1.0
    wrong = replace(exported.reference, confidences=[confidences, *exported.reference.confidences[1:]])
    found = verify(open_bundle(exported.path), wrong, probe_at(exported, values[alone] + 3e-6))
    assert (found.verdict, found.exempt) == ("failed", 1)
    assert "leave at another exit than in torch" in found.reason


def test_if_most_samples_are_too_close_to_a_threshold_the_reason_is_named(exported: Exported):
    close = np.full_like(exported.reference.confidences[0], exported.probe.exits["1"].threshold)
    reference = replace(exported.reference, confidences=[close, *exported.reference.confidences[1:]])
    found = verify(open_bundle(exported.path), reference, exported.probe)
    assert (found.verdict, found.exempt) == ("inconclusive", 32)
    assert found.reason.startswith("32 of 32 samples are so close to a probe threshold")


def test_a_sample_that_has_left_is_not_close_to_later_thresholds(exported: Exported):
    first, second = exported.reference.confidences
    leaves_early = int(np.flatnonzero(first > exported.probe.exits["1"].threshold)[0])
    threshold = float(np.float32(second[leaves_early] + 3e-6))
    assert np.abs(np.delete(second, leaves_early) - threshold).min() > 1e-3, "the test needs confidences that differ"
    head = exported.probe.exits["3"].head
    probe = Configuration("probe", {"1": exported.probe.exits["1"], "3": ExitSetting(head, threshold)})
    assert verify(open_bundle(exported.path), exported.reference, probe).exempt == 0


# --- exits whose confidences are all the same ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saturated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """A bundle whose heads are so sure that every confidence is exactly 1, and what its reference is made from."""
    module = build(Convolutions)
    condition(module, images(16, seed=1))
    used: list[Any] = []

    def sure(*arguments: Any, **keywords: Any) -> list[list[TrainedHead]]:
        heads = untrained_heads(*arguments, **keywords)
        return [[replace(head, temperature=head.temperature * 1e-6) for head in of_exit] for of_exit in heads]

    def spy(*arguments: Any) -> Reference:
        used.extend(arguments)
        return compute_reference(*arguments)

    path = tmp_path_factory.mktemp("saturated") / "bundle.dyce"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "untrained_heads", sure)
        patch.setattr(pipeline, "compute_reference", spy)
        export_source(from_module(module, input_size=INPUT_SIZE), ["1", "3"], path)
    return path, used


def test_saturated_confidences_can_be_verified(saturated: tuple[Path, list[Any]]):
    path, used = saturated
    bundle, reference = open_bundle(path), compute_reference(*used)
    assert all((confidences == 1).all() for confidences in reference.confidences)
    assert bundle.manifest.verification is not None
    assert (bundle.manifest.verification.verdict, bundle.manifest.verification.exempt) == ("passed", 0)


def test_routing_at_a_saturated_exit_is_verified_all_the_same(
    saturated: tuple[Path, list[Any]], monkeypatch: pytest.MonkeyPatch
):
    path, used = saturated
    bundle, reference = open_bundle(path), compute_reference(*used)
    probe = probe_configuration(bundle.manifest, reference)
    assert [on.threshold for on in probe.exits.values()] == [1.0, 1.0]
    use = Session.use
    monkeypatch.setattr(Session, "use", lambda session, knob: use(session, probe))  # nothing ever leaves
    found = verify(bundle, reference, probe)
    assert (found.verdict, found.exit_agreement) == ("failed", 0.0)


# --- models that do not compute numbers, or exits that say nothing ---------------------------------------------------


def test_a_model_that_computes_nan_for_some_pictures_is_told_so(exported: Exported):
    logits = exported.reference.logits.copy()
    logits[[2, 5], 1] = np.nan
    found = verify(open_bundle(exported.path), replace(exported.reference, logits=logits), exported.probe)
    assert found.verdict == "inconclusive"
    assert found.reason == "the model itself computes NaN or infinity for 2 of 32 pictures, at logits"


class Excluding(nn.Module):
    """A classifier of which one class is excluded."""

    def __init__(self) -> None:
        super().__init__()
        self.net = build(Convolutions)
        self.register_buffer("excluded", torch.tensor([False, False, True, False, False]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x).masked_fill(self.excluded, float("-inf"))


def test_a_model_may_exclude_classes_by_infinitely_small_logits(tmp_path: Path):
    module = Excluding().eval()
    condition(module, images(16, seed=1))
    made = export_source(from_module(module, input_size=INPUT_SIZE), ["1"], tmp_path / "bundle.dyce")
    assert made.manifest.verification is not None
    assert made.manifest.verification.verdict == "passed"


def test_an_exit_that_does_not_depend_on_the_input_is_named(exported: Exported):
    constant = [np.full_like(seam, 1 / 3) for seam in exported.reference.seams[0]]
    reference = replace(exported.reference, seams=[constant, *exported.reference.seams[1:]])
    found = verify(open_bundle(exported.path), reference, exported.probe)
    assert found.verdict == "inconclusive"
    assert found.reason.startswith("what the model computes at exit 1 hardly depends on the input")


def test_the_reference_is_what_torch_computes(exported: Exported):
    found = exported.reference
    with torch.inference_mode():
        expected = exported.model(torch.from_numpy(found.images)).numpy()
    np.testing.assert_allclose(found.logits, expected, rtol=1e-4, atol=1e-6)
    assert [[seam.shape for seam in seams] for seams in found.seams] == [[(8, 8, 16, 16)]] * 2
    assert [[part.shape for part in of_exit] for of_exit in found.head_logits] == [[(len(found.images), 5)]] * 2


# --- relative error --------------------------------------------------------------------------------------------------

whole = hnp.arrays(np.float32, (4, 3), elements=st.integers(-50, 50).map(float))


@given(whole, whole, st.integers(-1000, 1000))
def test_a_constant_in_both_hides_nothing(expected, found, constant):
    error = relative_error(expected, found, expected)
    shifted = relative_error(expected + np.float32(constant), found + np.float32(constant), expected + constant)
    assert shifted == pytest.approx(error, rel=1e-9)


@given(whole, whole, st.sampled_from([2.0**-20, 0.5, 8.0, 2.0**20]))
def test_the_scale_of_both_changes_nothing(expected, found, scale):
    factor = np.float32(scale)
    scaled = relative_error(expected * factor, found * factor, expected * factor)
    assert scaled == pytest.approx(relative_error(expected, found, expected), rel=1e-9)


def test_the_error_is_relative_to_what_depends_on_the_input():
    expected = np.array([[1000.0], [1001.0], [1002.0]], np.float32)
    assert relative_error(expected, expected + np.float32(0.5), expected) == 0.5
    assert relative_error(expected, expected, expected) == 0


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_infinitely_wrong(value):
    good = np.arange(6, dtype=np.float32).reshape(3, 2)
    bad = good.copy()
    bad[1, 1] = value
    assert relative_error(good, bad, good) == np.inf
    assert relative_error(bad, good, bad) == np.inf
    if value != -np.inf:
        assert relative_error(bad, bad, bad) == np.inf


def test_classes_that_both_exclude_are_left_out():
    logits = np.arange(6, dtype=np.float32).reshape(3, 2)
    excluding = np.column_stack([logits, np.full(3, -np.inf, np.float32)])
    assert relative_error(excluding, excluding, excluding) == 0
    off = excluding + np.array([0.5, 0, 0], np.float32)
    assert relative_error(excluding, off, excluding) == relative_error(logits, off[:, :2], logits) == 0.25


def test_another_shape_is_infinitely_wrong():
    values = np.arange(6, dtype=np.float32)
    assert relative_error(values.reshape(3, 2), values.reshape(2, 3), values.reshape(3, 2)) == np.inf


def test_an_expected_constant_allows_no_error_at_all():
    constant = np.ones((3, 2), np.float32)
    assert relative_error(constant, constant, constant) == 0
    assert relative_error(constant, constant + np.float32(1e-6), constant) == np.inf
