"""timm:NAME: where the weights come from, and names that timm no longer uses."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dyce_export.sources.inputs import InputOverrides
from dyce_export.sources.source import load_source
from dyce_runtime.errors import ModelError
from tests.unit.sources.small import holds, saved, timm_weights

pytest.importorskip("timm", reason="loading models needs timm")


def test_a_timm_model_without_cached_weights_is_random_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    source = load_source("timm:test_resnet")
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    again = load_source("timm:test_resnet")
    assert (source.name, source.origin, source.weights) == ("test_resnet", "timm:test_resnet", "random")
    assert (source.sha256, source.class_names) == (None, None)
    assert "RANDOM" in caplog.text
    assert "timm/test_resnet.r160_in1k" in caplog.text
    assert source.module is not None
    assert again.module is not None
    assert holds(source, again.module.state_dict()), "two exports must give the same bundle"
    assert torch.equal(state, torch.random.get_rng_state()), "the caller's random numbers were disturbed"


def hf_cache(tmp_path: Path, repository: str, name: str) -> Path:
    folder = tmp_path / "hf" / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    return folder / "snapshots" / "abc" / name


def test_pretrained_weights_come_from_the_hugging_face_cache(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights = timm_weights("test_resnet")
    save_file(weights, hf_cache(tmp_path, "timm/test_resnet.r160_in1k", "model.safetensors"))
    source = load_source("timm:test_resnet.r160_in1k")
    assert source.weights == "pretrained"
    assert source.origin == "timm:test_resnet.r160_in1k"
    assert holds(source, weights)
    assert source.sha256 is not None
    assert source.class_names is not None
    assert source.class_names[0] == "tench, Tinca tinca"
    assert len(set(source.class_names)) == 1000, "a name must lead to one class"
    assert not caplog.records


def test_pretrained_weights_come_from_the_torch_hub_cache(tmp_path: Path) -> None:
    (tmp_path / "torch" / "checkpoints").mkdir(parents=True)
    weights = timm_weights("mobilenetv3_small_050")
    torch.save(weights, tmp_path / "torch" / "checkpoints" / "mobilenetv3_small_050_lambc-4b7bbe87.pth")
    source = load_source("timm:mobilenetv3_small_050")
    assert source.weights == "pretrained"
    assert holds(source, weights)


def test_damaged_cached_weights_are_an_error_and_not_random_weights(tmp_path: Path) -> None:
    hf_cache(tmp_path, "timm/test_resnet.r160_in1k", "model.safetensors").write_bytes(b"half a fi")
    with pytest.raises(ModelError, match="timm cannot build test_resnet"):
        load_source("timm:test_resnet")


@pytest.mark.parametrize(
    ("former", "current"),
    [("gluon_resnet18_v1b", "resnet18.gluon_in1k"), ("gluon_resnet18_v1b.a1_in1k", "resnet18.a1_in1k")],
)
def test_a_former_name_leads_to_the_current_one_and_says_so(
    former: str, current: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="dyce_export")
    source = load_source(f"timm:{former}")
    assert (source.name, source.origin, source.weights) == (current, f"timm:{current}", "random")
    notes = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
    assert notes == [f"timm:{former} is now called {current}"]
    assert f"timm/{current}" in caplog.text


@pytest.mark.parametrize("how", ["arch", "file"])
def test_a_checkpoint_may_have_a_former_name(how: str) -> None:
    weights = timm_weights("resnet18", num_classes=4)
    content = {"state_dict": weights, **({"arch": "gluon_resnet18_v1b"} if how == "file" else {})}
    source = load_source(saved(content), arch="timm:gluon_resnet18_v1b" if how == "arch" else None)
    assert source.name == "resnet18.gluon_in1k"
    assert holds(source, weights)


def test_a_removed_model_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("timm.models.get_deprecated_models", lambda: {"gluon_resnet18_v1b": None})
    with pytest.raises(ModelError, match=r"timm \S+ has removed the model 'gluon_resnet18_v1b'"):
        load_source("timm:gluon_resnet18_v1b")


def test_a_timm_without_former_names_is_an_error_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("timm.models.get_deprecated_models")
    with pytest.raises(ModelError, match="no configuration for it; it may be a former name") as caught:
        load_source("timm:gluon_resnet18_v1b")
    assert "list_models" in caught.value.hint


def test_a_size_that_timm_cannot_build_is_named() -> None:
    message = "timm cannot build xcit_nano_12_p16_224 for an input of 3x100x100: AssertionError: `patch_size` should"
    with pytest.raises(ModelError, match=message):
        load_source("timm:xcit_nano_12_p16_224", overrides=InputOverrides((3, 100, 100)))
