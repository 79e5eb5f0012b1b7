import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dyce_export.verification.probes import FEWEST_PROBES, MOST_PROBES, condition, probe_count, synthetic_images
from dyce_runtime.errors import CaptureError
from tests.models import INPUT_SIZE, Convolutions, Tokens, build, images


@given(st.integers(0, 10**13), st.integers(0, 10**13))
def test_larger_models_get_fewer_probes_within_limits(macs, more):
    small, large = sorted((macs, more))
    assert FEWEST_PROBES <= probe_count(large) <= probe_count(small) <= MOST_PROBES


def test_synthetic_images_differ_from_each_other_and_are_the_same_every_time():
    first, again = synthetic_images(8, (3, 20, 12)), synthetic_images(8, (3, 20, 12))
    assert first.shape == (8, 3, 20, 12)
    assert first.dtype == torch.float32
    assert torch.equal(first, again)
    assert not torch.equal(first, synthetic_images(8, (3, 20, 12), seed=1))
    flat = F.normalize(first.flatten(1), dim=1)
    assert (flat @ flat.T - torch.eye(8)).abs().max() < 0.9


def test_synthetic_images_have_structure_at_a_coarse_scale():
    pixels = synthetic_images(16, (3, 32, 32))
    noise = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * pixels.std()
    assert F.avg_pool2d(pixels, 8).std() > 3 * F.avg_pool2d(noise, 8).std()


class Faint(Convolutions):
    """As many layers start: norms that hardly scale, a classifier of zeros."""

    def __init__(self) -> None:
        super().__init__()
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.constant_(module.running_var, 1e6)
        nn.init.zeros_(self.classifier.weight)


def reaction(model: nn.Module) -> float:
    """How much the logits of different inputs differ, relative to their scale."""
    with torch.inference_mode():
        logits = model(images(8))
    return float((logits - logits.mean(0)).abs().max() / logits.abs().max().clamp_min(1e-30))


def test_a_fresh_model_reacts_to_its_input_once_it_is_conditioned():
    model = build(Faint)
    assert reaction(model) < 1e-6
    condition(model, synthetic_images(16, INPUT_SIZE))
    assert reaction(model) > 0.05


@pytest.mark.parametrize("make", [Faint, Tokens])
def test_conditioning_is_repeatable_and_leaves_modes_momenta_and_the_random_numbers_alone(make):
    model, twin = build(make), build(make)
    momenta = [module.momentum for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    state = torch.get_rng_state()
    condition(model, synthetic_images(16, INPUT_SIZE))
    assert torch.equal(torch.get_rng_state(), state)
    torch.randn(3)
    condition(twin, synthetic_images(16, INPUT_SIZE))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, twin.state_dict()[name]), name
    assert not any(module.training for module in model.modules())
    assert [module.momentum for module in model.modules() if isinstance(module, nn.BatchNorm2d)] == momenta


def test_conditioning_keeps_weights_that_are_not_zero():
    model = build(Faint)
    before = model.b1.conv.weight.clone()
    condition(model, synthetic_images(16, INPUT_SIZE))
    assert torch.equal(model.b1.conv.weight, before)


def test_norms_without_running_statistics_are_left_alone():
    class Instant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x)).mean((2, 3))

    model = build(Instant)
    before = model(images(4))
    condition(model, synthetic_images(4, INPUT_SIZE))
    np.testing.assert_array_equal(model(images(4)).detach().numpy(), before.detach().numpy())


class OnlyEvaluated(Faint):
    """Its forward does something else in training, as detectors and models with auxiliary heads do."""

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training, "training needs targets"
        return super().forward(x)


def test_only_batch_norms_are_in_training_mode_while_a_model_is_conditioned():
    model = build(OnlyEvaluated)
    condition(model, synthetic_images(16, INPUT_SIZE))
    assert reaction(model) > 0.05
    assert not any(module.training for module in model.modules())


def test_a_model_that_fails_on_the_images_is_refused_as_the_capture_would():
    with pytest.raises(CaptureError, match="fails on images of 1x16x16"):
        condition(build(Faint), synthetic_images(4, (1, 16, 16)))
