"""What was measured of a bundle on this machine. It lies in the user's cache: on another machine it is not true."""

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
    """What a benchmark measured of a configuration.

    Attributes:
        p50_ms, p90_ms: median and 90 % quantile of the milliseconds of a call, preprocessing apart.
        time_ratio: to the uncut model in the same run; below 1 is faster.
        time_ratio_range: what its median lies between, as far as the rounds of that run tell.
        accuracy: share of samples labelled right; None without labels.
        loss: accuracy of the uncut model on the same samples minus ``accuracy``; None without labels.
        loss_error: its paired standard error.
        samples: how many there were.
        unseen: how many of them took no part in making the bundle.
        batch: samples per call.
        target, threads: the engine, and the threads per call that it was asked for.
        cpu: as the system names it.
        date: of the measurement, as in 2026-01-31.
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
    """A configuration and what a benchmark measured of it."""

    exits: dict[str, ExitSetting]
    gates: dict[str, tuple[float, ...] | int]
    figures: BenchFigures

    def is_of(self, entry: Entry) -> bool:
        """Whether exits, heads, thresholds and gates are those of an entry."""
        return settings_of(self) == settings_of(entry)


class Tuning(msgspec.Struct, frozen=True):
    """How batches run best.

    Attributes:
        best_batch: samples that should run at once where there are more; 0 if that was not measured.
        min_exited_to_compact: exit id to how many samples of a batch have to have left there for the rest to be moved
            together.
    """

    best_batch: int = 0
    min_exited_to_compact: dict[str, int] = msgspec.field(default_factory=dict)


class MeasuredHere(msgspec.Struct, frozen=True):
    """``measured.json``.

    Attributes:
        tuning: by target and threads, such as ``onnxruntime 2``.
        benched: the latest figures of each configuration.
    """

    tuning: dict[str, Tuning] = msgspec.field(default_factory=dict)
    benched: tuple[Benched, ...] = ()

    def figures(self, entry: Entry) -> BenchFigures | None:
        """What was measured of a configuration; None if nothing was."""
        return next((one.figures for one in self.benched if one.is_of(entry)), None)


NOTHING = MeasuredHere()


def read_measured(bundle: Bundle) -> MeasuredHere:
    """What is known; nothing if the file is missing or damaged."""
    with suppress(OSError, msgspec.DecodeError):
        return read_json(_path(bundle), MeasuredHere)
    return NOTHING


def tuning_of(bundle: Bundle, target: str, threads: int | None) -> Tuning:
    """How batches run best on a target; what was not measured is left out."""
    return read_measured(bundle).tuning.get(_key(target, threads), Tuning())


def write_tuning(bundle: Bundle, target: str, threads: int | None, tuning: Tuning) -> None:
    """Store how batches run best. Raises DestinationError if the cache cannot be written."""
    known = read_measured(bundle)
    _write(bundle, msgspec.structs.replace(known, tuning={**known.tuning, _key(target, threads): tuning}))


def write_benched(bundle: Bundle, benched: Iterable[Benched]) -> None:
    """Store what a benchmark measured; of a configuration the latest stays.

    Raises DestinationError if the cache cannot be written.
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
