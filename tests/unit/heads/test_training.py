from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dyce_calibration.heads import training as heads_module
from dyce_calibration.heads.features import Features
from dyce_calibration.heads.temperature import softmax
from dyce_calibration.heads.training import Recipe, TrainedHead, make_mlp, train_heads, untrained_heads
from dyce_runtime.errors import UsageError

CLASSES = 4
SHORT = Recipe(epochs=8, batch=64)
LONG = replace(SHORT, epochs=30)


def features(count: int = 600, *, source: str = "data", seed: int = 0) -> Features:
    """Two exits: clouds around one centre per class, and the same on a scale and far from zero, with a constant."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, CLASSES, count)
    centres = np.random.default_rng(99).normal(0, 2, (CLASSES, 6))
    easy = (centres[truth] + random.normal(0, 0.5, (count, 6))).astype(np.float32)
    awkward = (easy * np.array([1, 1e3, 1e-3, 1, 1, 0], np.float32) + np.array([0, 1e4, 0, -50, 0, 7])).astype(
        np.float32
    )
    base = (6 * np.eye(CLASSES)[truth]).astype(np.float32)
    labels = truth if source == "data" else np.zeros(count)  # without labels nothing may read them
    return Features(base, (easy, awkward), labels.astype(np.int64), np.arange(count, dtype=np.uint64), source)


def accuracy(head: TrainedHead, of: Features, exit: int) -> float:
    found = head.logits(torch.from_numpy(of.exits[exit])).numpy().argmax(1)
    return float((found == of.logits.argmax(1)).mean())


@pytest.mark.parametrize("source", ["data", "base"])
@pytest.mark.parametrize("type", ["mlp1x1000", "mlp2x32"])
def test_an_easy_problem_is_learnt_at_every_exit(source, type):
    """From labels, or without them by imitating the base model."""
    trained = train_heads(features(source=source), [type], SHORT, seed=0)
    unseen = features(seed=1)
    assert [accuracy(head, unseen, exit) > 0.97 for exit, (head,) in enumerate(trained)] == [True, True]
    assert all(head.type == type and head.temperature == 1.0 for (head,) in trained)


def test_exported_layers_on_raw_features_equal_the_trained_module_on_standardised_ones(monkeypatch: pytest.MonkeyPatch):
    modules: list[nn.Sequential] = []

    def remember(*arguments) -> nn.Sequential:
        modules.append(make_mlp(*arguments))
        return modules[-1]

    monkeypatch.setattr(heads_module, "make_mlp", remember)
    data = features()
    trained = train_heads(data, ["mlp2x32"], Recipe(epochs=2), seed=0)
    for (head,), module, store in zip(trained, modules, data.exits, strict=True):
        std = store.astype(np.float64).std(0)
        std = np.maximum(std, 1e-4 * std.max())
        standardised = ((store - store.astype(np.float64).mean(0)) / std).astype(np.float32)
        with torch.inference_mode():
            expected = module(torch.from_numpy(standardised)).numpy()
        np.testing.assert_allclose(head.logits(torch.from_numpy(store)).numpy(), expected, rtol=1e-3, atol=2e-3)


def test_the_same_seed_gives_the_same_heads_and_another_seed_others():
    first, again, other = (train_heads(features(), ["mlp2x8"], SHORT, seed=seed) for seed in (3, 3, 4))
    for layers, same, different in zip(first[0][0].layers, again[0][0].layers, other[0][0].layers, strict=True):
        np.testing.assert_array_equal(layers[0], same[0])
        assert not np.array_equal(layers[0], different[0])


def test_training_leaves_the_callers_random_numbers_alone():
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    train_heads(features(), ["mlp1x1000"], Recipe(epochs=1), seed=0)
    untrained_heads([torch.randn(8, 6, generator=torch.Generator().manual_seed(0))], CLASSES, ["mlp1x1000"], seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)


def test_fewer_samples_than_a_batch_are_enough():
    ((head,), _) = train_heads(features(10), ["mlp1x1000"], SHORT, seed=0)
    assert np.isfinite(head.layers[0][0]).all()


def test_all_types_are_trained_at_once_and_stand_in_their_order():
    types = ["mlp1x1000", "mlp2x16", "mlp3x8"]
    trained = train_heads(features(), types, LONG, seed=0)
    assert [[head.type for head in of_exit] for of_exit in trained] == [types, types]
    unseen = features(seed=1)
    assert all(accuracy(head, unseen, exit) > 0.95 for exit, of_exit in enumerate(trained) for head in of_exit)


@pytest.mark.parametrize(
    "change", [{"distillation": 0.5}, {"hard_first": True}, {"average": 0.99}, {"distillation": 1.0, "average": 0.9}]
)
def test_every_part_of_the_recipe_changes_the_heads_and_still_learns(change):
    plain = train_heads(features(), ["mlp2x16"], LONG, seed=0)
    other = train_heads(features(), ["mlp2x16"], replace(LONG, **change), seed=0)
    unseen = features(seed=1)
    for exit, ((a,), (b,)) in enumerate(zip(plain, other, strict=True)):
        same = np.array_equal(a.layers[0][0], b.layers[0][0])
        assert same == (exit == 0 and "hard_first" in change), "the first exit sees all samples alike"
        assert accuracy(b, unseen, exit) > 0.9


def test_soft_targets_are_weighed_as_hinton_does():
    """T^2 KL(softmax(base / T) || softmax(head / T)), sample by sample."""
    generator = torch.Generator().manual_seed(0)
    base, logits = (torch.randn(5, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    temperature = 3.0
    recipe = Recipe(distillation=0.25, distillation_temperature=temperature, label_smoothing=0.0)
    labels = torch.tensor([0, 1, 2, 3, 0])
    p, q = (torch.softmax(x / temperature, 1) for x in (base, logits))
    soft = temperature**2 * (p * (p / q).log()).sum(1)
    hard = -torch.log_softmax(logits, 1)[torch.arange(5), labels]
    targets = heads_module._Targets(labels, base)
    torch.testing.assert_close(targets.losses(logits, recipe), 0.75 * hard + 0.25 * soft, check_dtype=False)
    unlabelled = heads_module._Targets(None, base)
    torch.testing.assert_close(unlabelled.losses(logits, recipe), soft, check_dtype=False)


def test_a_long_average_keeps_no_initial_weights():
    """With a decay of 0.9999 and few steps a plain average would be the initial weights, which know nothing."""
    unseen = features(seed=1)
    ((head,), _) = train_heads(features(), ["mlp2x16"], replace(LONG, average=0.9999), seed=0)
    assert accuracy(head, unseen, 0) > 0.9


def test_progress_sees_every_epoch():
    seen: list[int] = []
    train_heads(
        features(), ["mlp1x1000"], Recipe(epochs=3), seed=0, progress=lambda e: (seen.append(i) or i for i in e)
    )
    assert seen == [0, 1, 2]


@pytest.mark.parametrize(("type", "macs"), [("mlp1x1000", 24), ("mlp2x32", 6 * 32 + 32 * 4), ("mlp3x5", 30 + 25 + 20)])
def test_work_is_counted_as_the_products_of_the_layers(type, macs):
    ((head,),) = untrained_heads([torch.randn(8, 6)], CLASSES, [type], seed=0)
    assert head.macs == macs
    assert [weight.dtype for weight, _ in head.layers] == [np.float32] * len(head.layers)


@pytest.mark.parametrize("type", ["", "mlp", "mlp1", "mlp0x10", "mlp1x0", "conv1x10", "mlp1x10x2", " mlp1x10"])
def test_an_unknown_type_is_refused_with_what_is_expected(type):
    with pytest.raises(UsageError, match="expected mlp<layers>x<width>, such as mlp1x1000"):
        make_mlp(type, 6, CLASSES)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("type", ["mlp1x1000", "mlp3x16"])
def test_untrained_heads_are_of_different_minds_about_different_inputs(scale, type):
    pooled = scale * (torch.randn(16, 8, generator=torch.Generator().manual_seed(0)) + 20)
    ((head,),) = untrained_heads([pooled], 10, [type], seed=0)
    confidences = softmax(head.logits(pooled).numpy(), head.temperature).max(1)
    assert np.ptp(confidences) > 0.1
    assert 0.15 < np.median(confidences) < 0.999


def test_a_trained_head_puts_relu_between_its_layers_only():
    layers = tuple((torch.randn(3, 3).numpy(), torch.randn(3).numpy()) for _ in range(3))
    x = torch.randn(5, 3)
    expected = x
    for index, (weight, bias) in enumerate(layers):
        expected = F.linear(expected, torch.from_numpy(weight), torch.from_numpy(bias))
        expected = expected.clamp_min(0) if index < 2 else expected
    torch.testing.assert_close(TrainedHead("mlp3x3", layers).logits(x), expected)
