"""The bundle of :mod:`tests.cascades` with an exit sequence network, and what it must answer (computed by torch)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray

from dyce_calibration.heads.sequence import ExitSequence
from dyce_calibration.heads.temperature import softmax
from dyce_export.savers.compose import Joined
from dyce_export.savers.sequence import write_steps
from dyce_runtime.bundle.configuration import Configuration, ExitSetting
from dyce_runtime.bundle.manifest import BUILTIN
from dyce_runtime.bundle.reader import Bundle
from tests import bundles, cascades
from tests.bundles import CHANNELS, CLASSES, HEAD, WIDTH, Answer

TYPE = "esn2x8"
TEMPERATURES = (8.0, 4.0)
HEADS = (
    ("saver0.2", HEAD),
    ("saver0", BUILTIN),
    ("saver1", BUILTIN),
    ("3", HEAD),
    ("3", TYPE),
    ("7", HEAD),
    ("7", TYPE),
)

_thresholds = st.sampled_from([0.0, 0.25, 0.3, 0.4, 0.5, 0.7, 0.9, 1.0])
configurations = st.fixed_dictionaries(
    {},
    optional={
        exit: st.builds(ExitSetting, st.sampled_from([type for id, type in HEADS if id == exit]), _thresholds)
        for exit, _ in HEADS
    },
).map(lambda exits: Configuration("drawn", exits))


def network() -> ExitSequence:
    """With random weights: what it says depends on every token."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        made = ExitSequence([CHANNELS, WIDTH, WIDTH], CLASSES, TYPE)
        for output in made.outputs:
            torch.nn.init.normal_(output.weight, std=6.0)
        return made.eval()


def make_sequence(folder: Path) -> Path:
    """Write the bundle, with the network of :func:`network`."""

    def untrained(joined: Joined) -> Joined:
        made = joined.bundle
        manifest = write_steps(made, network(), TYPE, TEMPERATURES, [[[2, 3]], [[2, 3]]])
        return replace(joined, bundle=Bundle(made.path, manifest, made.configurations))

    return cascades.make_cascade(folder, untrained)


def all_heads(inputs: dict[str, NDArray[np.float32]]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits (N, 8, classes) and confidences (N, 8) of every head on every sample, in the order of ``HEADS``."""
    logits, confidences = cascades.all_heads(inputs)
    pooled, live = [inputs["image"].mean(axis=(2, 3))], inputs["image"]
    for k in range(2):
        live = np.maximum(np.einsum("oi,nihw->nohw", bundles.WEIGHTS[f"conv{k}"][:, :, 0, 0], live), 0)
        pooled.append(live.mean(axis=(2, 3)))
    saver = logits[:, 2]
    with torch.inference_mode():
        _, *steps = network()([torch.from_numpy(np.asarray(part, np.float32)) for part in (*pooled, saver)])
    own = [step.numpy() for (step,) in steps]
    sure = [softmax(one, temperature).max(axis=1) for one, temperature in zip(own, TEMPERATURES, strict=True)]
    places = [4, 5]  # behind the heads of the cascade at the same exits
    return np.insert(logits, places, np.stack(own, 1), axis=1), np.insert(
        confidences, places, np.stack(sure, 1), axis=1
    )


def expected(inputs: dict[str, NDArray[np.float32]], configuration: Configuration) -> Answer:
    """Every sample takes the first head that is on and surer than its threshold."""
    logits, confidences = all_heads(inputs)
    head = (confidences > _limits(configuration)).argmax(axis=1)
    rows = np.arange(len(logits))
    exits = [*dict.fromkeys(exit for exit, _ in HEADS)]
    exit = np.array([*(exits.index(id) for id, _ in HEADS), len(exits)])[head]
    return Answer(logits[rows, head], logits[rows, head].argmax(axis=1), confidences[rows, head], exit)


def near_threshold(inputs: dict[str, NDArray[np.float32]], configuration: Configuration) -> bool:
    """Whether a rounding error could change an exit."""
    return bool((np.abs(all_heads(inputs)[1] - _limits(configuration)) < 1e-4).any())


def _limits(configuration: Configuration) -> NDArray[np.float32]:
    settings = ((configuration.exits.get(exit), type) for exit, type in HEADS)
    on = [np.inf if own is None or own.head != type else own.threshold for own, type in settings]
    return np.array([*on, -np.inf], np.float32)
