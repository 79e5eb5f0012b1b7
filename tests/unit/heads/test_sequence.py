"""Exit sequence networks: step by step as at once, and better than the saver alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dyce_calibration.heads.features import Features
from dyce_calibration.heads.sequence import ExitSequence, parse_sequence, train_sequence
from dyce_calibration.heads.training import Recipe
from dyce_runtime.errors import UsageError

CLASSES = 4
SIZES = (6, 5, 7, 3)


def inputs_of(count: int, seed: int = 0, sizes: tuple[int, ...] = SIZES) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, size, generator=generator) for size in (*sizes, CLASSES)]


def network(type: str, sizes: tuple[int, ...] = SIZES) -> ExitSequence:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ExitSequence(sizes, CLASSES, type).eval()


@given(st.integers(0, 3), st.sampled_from([8, 24, 64]), st.lists(st.integers(1, 9), min_size=2, max_size=6))
@settings(max_examples=25)
def test_step_by_step_is_the_same_as_all_at_once(layers, width, sizes):
    made = network(f"esn{layers}x{width}", tuple(sizes))
    *pooled, saver = inputs = inputs_of(5, sizes=tuple(sizes))
    whole = attention_over_all(made, pooled, saver)
    with torch.inference_mode():
        found = made(inputs)
    assert len(found) == len(sizes), "the saver and every exit"
    torch.testing.assert_close(found[0][0], saver)
    for index, logits in enumerate(whole, start=1):
        torch.testing.assert_close(found[index][0], logits, atol=1e-5, rtol=1e-5)


def attention_over_all(made: ExitSequence, pooled: list[torch.Tensor], saver: torch.Tensor) -> list[torch.Tensor]:
    """The one-shot network: all tokens in one tensor, a causal mask, torch's own attention."""
    norm = torch.nn.functional.layer_norm
    with torch.inference_mode():
        tokens = [torch.relu(e(norm(f, f.shape[1:]))) for e, f in zip(made.embeddings, pooled, strict=True)]
        x = torch.stack(tokens, dim=1)
        for layer in made.layers:
            width = x.shape[2]
            parts = layer.query_key_value(norm(x, (width,))).split(width, dim=2)
            query, key, value = (part.unflatten(2, (8, -1)).transpose(1, 2) for part in parts)
            found = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
            x = x + layer.attended(found.transpose(1, 2).flatten(2))
            if layer.mlp is not None:
                x = x + layer.mlp(norm(x, (width,)))
        return [saver + output(x[:, index]) for index, output in enumerate(made.outputs, start=1)]


def test_no_exit_looks_at_what_comes_later():
    made, inputs = network("esn2x16"), inputs_of(3)
    changed = [*inputs[:3], inputs[3].flip(1), inputs[4]]
    with torch.inference_mode():
        before, after = made(inputs), made(changed)
    for index in (1, 2):
        torch.testing.assert_close(before[index][0], after[index][0], atol=0, rtol=0)
    assert (before[3][0] - after[3][0]).abs().max() > 1e-3
    with torch.inference_mode():
        earlier = made([inputs[0].flip(1), *inputs[1:]])
    assert (before[3][0] - earlier[3][0]).abs().max() > 1e-3, "but at what came before"


def test_what_an_exit_costs_is_what_its_token_multiplies():
    made = network("esn2x16")
    # Embedding; per layer query, key, value and output, the scores and the sum over tokens, and in the first an MLP.
    layers = [2 * (4 * 16 * 16 + 2 * tokens * 16) + 8 * 16 * 16 for tokens in (1, 2, 3, 4)]
    assert made.macs(1) == 6 * 16 + layers[0] + 5 * 16 + layers[1] + 16 * CLASSES
    assert made.macs(2) == 7 * 16 + layers[2] + 16 * CLASSES
    assert made.macs(3) == 3 * 16 + layers[3] + 16 * CLASSES
    assert network("esn0x8").macs(2) == 7 * 8 + 8 * CLASSES


def test_trained_it_knows_more_than_the_saver():
    random = np.random.default_rng(0)
    labels = random.integers(0, CLASSES, 1500)
    evidence = np.eye(CLASSES, dtype=np.float32)[labels]
    # The saver sees little, the exits each a part of the rest.
    stores = [evidence @ random.normal(size=(CLASSES, size)).astype(np.float32) for size in SIZES]
    stores = [store + 2 * random.normal(size=store.shape).astype(np.float32) for store in stores]
    saver = evidence + 1.5 * random.normal(size=evidence.shape).astype(np.float32)
    exits = (*stores, saver.astype(np.float32))
    features = Features(saver, exits, labels, np.arange(1500, dtype=np.uint64), "data")
    made = train_sequence(features, "esn1x16", Recipe(epochs=20, hard_first=True), seed=0)
    with torch.inference_mode():
        right = [
            (of[0].argmax(1).numpy() == labels).mean() for of in made([torch.from_numpy(store) for store in exits])
        ]
    assert right[0] < 0.7
    assert right[1] > right[0] + 0.05
    assert right[3] > right[1]


@pytest.mark.parametrize("type", ["esn1", "esn1x12", "mlp1x64", "esnx64", "esn1x0"])
def test_a_type_that_is_none_is_refused(type: str):
    with pytest.raises(UsageError, match="expected esn<layers>x<width>"):
        parse_sequence(type)
