"""What holds wherever a model comes from: how it is returned, and mistakes in naming it."""

from __future__ import annotations

from typing import Any

import pytest

from dyce_export.sources.source import load_source
from dyce_runtime.errors import ModelError, UsageError

pytest.importorskip("timm", reason="loading models needs timm")


def test_a_model_is_returned_frozen_in_eval_mode(caplog: pytest.LogCaptureFixture) -> None:
    module = load_source("timm:test_resnet").module
    assert module is not None
    assert not any(part.training for part in module.modules())
    assert not any(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize(
    ("model", "message", "hint"),
    [
        ("timm:resnet_18", "has no model named 'resnet_18'", "resnet18"),
        ("timm:zzz", "has no model named 'zzz'", "timm.list_models"),
        ("timm:resnet18.nope", "resnet18 has no weights tagged 'nope'; its tags are: a1_in1k", ""),
        ("timm:vit_small_patch14_dinov2", "vit_small_patch14_dinov2 has no classifier", "Train a classifier"),
        ("resnet18", "there is no file resnet18, and it does not begin with timm:", "Did you mean timm:resnet18?"),
        ("nope.pt", "there is no file nope.pt, and it does not begin with timm:", "timm:NAME"),
    ],
)
def test_unknown_names_lead_to_known_ones(model: str, message: str, hint: str) -> None:
    with pytest.raises(ModelError) as caught:
        load_source(model)
    assert message in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        (None, {}, "no model was named"),
        ("model.pt", {"arch": "resnet18", "factory": "a:b"}, "--arch and --model both name the architecture"),
        ("timm:resnet18", {"arch": "resnet50"}, "timm:resnet18 names its own architecture"),
        ("timm:resnet18", {"factory": "a:b"}, "timm:resnet18 names its own architecture"),
        ("net.pt2", {"arch": "resnet50"}, "net.pt2 names its own architecture"),
        (None, {"factory": "models"}, "expected PACKAGE.MODULE:CALLABLE"),
    ],
)
def test_arguments_that_do_not_fit_together_are_refused(model: Any, arguments: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_source(model, **arguments)
