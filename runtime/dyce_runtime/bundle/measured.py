"""Store measurements of a bundle in the user's cache, since they are valid on this machine only."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import msgspec

from dyce_runtime.atomic_write import write_atomically
from dyce_runtime.bundle.cache import cache_of
from dyce_runtime.bundle.configuration import Entry, ExitSetting, settings_of
from dyce_runtime.bundle.reader import Bundle
from dyce_runtime.errors import DestinationError
from dyce_runtime.json_files import read_json

FILE = "measured.json"


class BenchFigures(msgspec.Struct, frozen=True):
    """Benchmark results of a configuration.

    Attributes:
        p50_ms, p90_ms: median and 90 % quantile of the duration of a call in milliseconds, without preprocessing.
        time_ratio: median duration relative to the uncut model in the same run; below 1 is faster.
        accuracy: fraction of samples classified correctly; None without labels.
        samples: number of samples.
        unseen: number of samples that were not used to make the bundle.
        batch: samples per call.
        target, threads: the target, and the threads per call that were requested.
        cpu: name of the processor, as the system reports it.
        date: of the measurement, as in 2026-01-31.
        time_ratio_range: confidence interval of ``time_ratio``, from the rounds of that run.
        loss: accuracy of the uncut model on the same samples minus ``accuracy``; None without labels.
        loss_error: paired standard error of ``loss``.
    """

    p50_ms: float
    p90_ms: float
    time_ratio: float
    accuracy: float | None
    samples: int
    unseen: int
    batch: int
    target: str
    threads: str
    cpu: str
    date: str
    time_ratio_range: tuple[float, float] | None = None
    loss: float | None = None
    loss_error: float | None = None


class Benched(msgspec.Struct, frozen=True):
    """A configuration and its benchmark results."""

    exits: dict[str, ExitSetting]
    gates: dict[str, tuple[float, ...] | int]
    figures: BenchFigures

    def is_of(self, entry: Entry) -> bool:
        """Return whether exits, heads, thresholds and gates are those of an entry."""
        return settings_of(self) == settings_of(entry)


class Tuning(msgspec.Struct, frozen=True):
    """Measured settings for running batches.

    Attributes:
        best_batch: the fastest number of samples per chunk of a larger call; 0 if it was not measured.
        min_exited_to_compact: exit id to the number of samples of a batch that must have exited before the remaining
            ones are compacted.
    """

    best_batch: int = 0
    min_exited_to_compact: dict[str, int] = msgspec.field(default_factory=dict)


class MeasuredHere(msgspec.Struct, frozen=True):
    """The content of ``measured.json``.

    Attributes:
        tuning: keyed by target and threads, such as ``onnxruntime 2``.
        benched: the latest figures of each configuration.
    """

    tuning: dict[str, Tuning] = msgspec.field(default_factory=dict)
    benched: tuple[Benched, ...] = ()

    def figures(self, entry: Entry) -> BenchFigures | None:
        """Return the benchmark results of a configuration; None if it was not measured."""
        return next((one.figures for one in self.benched if one.is_of(entry)), None)


NOTHING = MeasuredHere()


def read_measured(bundle: Bundle) -> MeasuredHere:
    """Read what was measured on this machine; nothing if the file is missing or damaged."""
    with suppress(OSError, msgspec.DecodeError):
        return read_json(_path(bundle), MeasuredHere)
    return NOTHING


def tuning_of(bundle: Bundle, target: str, threads: int | None) -> Tuning:
    """Return the measured settings for batches on a target; defaults if nothing was measured."""
    return read_measured(bundle).tuning.get(_key(target, threads), Tuning())


def write_tuning(bundle: Bundle, target: str, threads: int | None, tuning: Tuning) -> None:
    """Store the settings for batches on a target. Raises DestinationError if the cache cannot be written."""
    known = read_measured(bundle)
    _write(bundle, msgspec.structs.replace(known, tuning={**known.tuning, _key(target, threads): tuning}))


def write_benched(bundle: Bundle, benched: Iterable[Benched]) -> None:
    """Store benchmark results, replacing earlier ones of the same configurations.

    Raises:
        DestinationError: the cache cannot be written.
    """
    known = read_measured(bundle)
    new = {msgspec.json.encode((one.exits, one.gates), order="sorted"): one for one in (*known.benched, *benched)}
    _write(bundle, msgspec.structs.replace(known, benched=tuple(new.values())))


def _key(target: str, threads: int | None) -> str:
    return f"{target} {'auto' if threads is None else threads}"


def _path(bundle: Bundle) -> Path:
    return cache_of(bundle) / FILE


def _write(bundle: Bundle, measured: MeasuredHere) -> None:
    path = _path(bundle)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, msgspec.json.format(msgspec.json.encode(measured), indent=2) + b"\n")
    except OSError as error:
        raise DestinationError(
            f"{path} cannot be written: {error.strerror}", hint="Set XDG_CACHE_HOME to a folder that can be written."
        ) from error
