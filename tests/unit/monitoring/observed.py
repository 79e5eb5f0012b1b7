"""Records and results for the tests of observation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from dyce_runtime import Bundle, Configuration, Result
from dyce_runtime.bundle.reader import RECORDS
from dyce_runtime.monitoring.observation import BUCKETS, Observation
from tests.bundles import CLASSES, HEAD, on

EXITS = ("3", "7", "final")


FULL, FAST = Configuration("full"), Configuration("fast", on(exit3=0.5, exit7=0.5))


LATE = Configuration("late", on(exit7=0.5))


def with_records(tiny: Bundle, folder: Path, confidences: NDArray[np.float32], split: object = "test") -> Bundle:
    write_records(folder / RECORDS, scores=confidences, split=np.broadcast_to(np.asarray(split), len(confidences)))
    return Bundle(folder, tiny.manifest, tiny.configurations)


def write_records(path: Path, **arrays: object) -> None:
    """Write records of all heads; those named None are left out."""
    path.parent.mkdir(exist_ok=True)
    all_arrays = {"exit": EXITS[:-1], "head": [HEAD] * 2, **arrays}
    np.savez(path, **{name: np.asarray(array) for name, array in all_arrays.items() if array is not None})


def drawn(count: int, seed: int, sureness: float = 2.0) -> NDArray[np.float32]:
    """Confidences (N, 3) of every head, the surer the more, as different samples are differently hard."""
    random = np.random.default_rng(seed)
    return random.beta([sureness, sureness + 1, sureness + 2], 2, (count, 3)).astype(np.float32)


def leaving(confidences: NDArray[np.float32], configuration: Configuration) -> list[int]:
    """Where each sample leaves, one after another."""
    found = []
    for row in confidences:
        found.append(2)
        for index in (1, 0):
            setting = configuration.exits.get(EXITS[index])
            if setting is not None and row[index] > np.float32(setting.threshold):
                found[-1] = index
    return found


def answer(configuration: Configuration, confidences: NDArray[np.float32]) -> Result:
    """What a call returns whose heads are that sure."""
    exit = np.array(leaving(confidences, configuration), np.int64)
    count = len(confidences)
    taken = confidences[np.arange(count), exit]
    return Result(
        np.zeros((count, CLASSES), np.float32),
        np.zeros(count, np.int64),
        taken,
        exit,
        configuration,
        ("3", "7", "final"),
    )


def left(configuration: Configuration, *exits: int) -> Result:
    """What a call returns whose samples leave there."""
    count = len(exits)
    ones = np.ones(count, np.float32)
    return Result(
        np.zeros((count, CLASSES), np.float32),
        np.zeros(count, np.int64),
        ones,
        np.array(exits),
        configuration,
        ("3", "7", "final"),
    )


def the_report(watch: Observation) -> dict:
    """Of the configuration that was used last."""
    return watch.as_dict()["drift"]["configurations"][0]


seconds = st.one_of(st.sampled_from(BUCKETS), st.floats(0, 20))


seeds = st.integers(0, 2**32 - 2)


watched = st.sampled_from([FULL, FAST, LATE, Configuration("wary", on(exit3=0.9, exit7=0.8))])
