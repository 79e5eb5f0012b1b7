"""Which segments can be lowered: those in which that changes too many decisions stay in float32.

That is decided on the split ``search`` alone: the others say what the result is worth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from dyce_calibration.promises.agreement import exit_agreement
from dyce_calibration.recorder import record
from dyce_calibration.records import Records
from dyce_export.graph.joining import Network
from dyce_export.precision.cut import write_lowered
from dyce_export.progress import Progress
from dyce_runtime.bundle.configuration import FULL, Configuration, Configurations, Entry
from dyce_runtime.bundle.manifest import Manifest
from dyce_runtime.bundle.reader import Bundle
from dyce_runtime.errors import VerificationError
from dyce_runtime.execution.contracts import TargetSpec
from dyce_runtime.execution.session import Session
from dyce_runtime.inputs.datasets import Dataset

# Samples that say whether a trial is worth all of them.
_FEW = 1000

# The network with all but some pieces lowered, by their ids.
Convert: TypeAlias = Callable[[Sequence[str]], ir.Model]


@dataclass(frozen=True)
class Limits:
    """What a lower precision may change.

    Attributes:
        min_agreement: the share of samples that have to leave at the same exit, under the thresholds of float32.
        max_loss: of the full model's accuracy.
    """

    min_agreement: float = 0.99
    max_loss: float = 0.01


@dataclass(frozen=True)
class Change:
    """What a lower precision changes, on some samples.

    Attributes:
        agreement: lowest share of samples that leave at the same exit, over the named configurations of float32.
        before, now: accuracy of the full model.
    """

    agreement: float
    before: float
    now: float

    @staticmethod
    def between(before: Records, now: Records, configurations: Sequence[Configuration]) -> Change:
        """Compare records of the same samples."""
        right = [part.accuracy() for part in (before, now)]
        return Change(exit_agreement(before, now, configurations), *right)

    def within(self, limits: Limits) -> bool:
        """Whether it is as little as asked."""
        return self.agreement >= limits.min_agreement and self.before - self.now <= limits.max_loss

    def __str__(self) -> str:
        return (
            f"{self.agreement:.1%} of the samples leave at the same exit as in float32, and the full model is right on "
            f"{self.now:.1%} instead of {self.before:.1%}"
        )


@dataclass(frozen=True)
class Trial:
    """The network with some segments kept in float32, and what became of its decisions.

    Attributes:
        kept: ids of the segments.
        manifest: with the pieces as they were written.
        records: of the same samples as those before, by the pieces as they are now.
        change: on those of the split ``search``.
    """

    kept: tuple[str, ...]
    manifest: Manifest
    records: Records
    change: Change


@dataclass(frozen=True)
class Method:
    """How a network is lowered, and what runs it then.

    Attributes:
        target: what makes the records.
        calibration: pictures that were looked at for it.
        divisible: whether some segments can be kept while others are lowered.
    """

    precision: str
    network: Network
    convert: Convert
    target: str
    calibration: int = 0
    divisible: bool = True


class Bench:
    """Where trials are made: one folder, whose pieces the next trial replaces.

    Args:
        known: records in float32, of the samples in ``pictures``.

    Attributes:
        named: the configurations of float32.
        segments: ids of those that can be kept in float32.
    """

    def __init__(self, bundle: Bundle, method: Method, known: Records, pictures: Dataset, folder: Path) -> None:
        self._method, self._known, self._pictures, self._folder = method, known, pictures, folder
        self.named: list[Configuration] = [bundle.configuration(name) for name in bundle.configurations.named]
        ids: dict[str, list[str]] = {"segment": [], "head": [], "span": []}
        for piece in bundle.manifest.pieces:
            ids[piece.role].append(piece.id)
        self.segments, self._heads = tuple(ids["segment"]) if method.divisible else (), ids["head"]

    def attempt(self, kept: Sequence[str], samples: NDArray[np.intp], progress: Progress) -> Trial:
        """Lower all other segments and run some of the samples."""
        lowered = self._method.convert([*self._heads, *kept])
        manifest = write_lowered(self._method.network, lowered, self._method.precision, self._folder)
        known, pictures = self._known.take(samples), self._pictures.take(samples)
        only_full = Configurations(named={FULL: Entry(exits={})})
        with Session(Bundle(self._folder, manifest, only_full), self._method.target, TargetSpec()) as session:
            records = record(session, pictures, known.split, lambda starts: progress.track(starts, "recording"))
        change = Change.between(known.of_split("search"), records.of_split("search"), self.named)
        return Trial(tuple(kept), manifest, records, change)


def best_trial(bench: Bench, split: NDArray[np.str_], limits: Limits, progress: Progress) -> Trial:
    """The first trial within the limits: of all segments, then of fewer and fewer, the most harmful left out first.

    Args:
        split: (N,) the name of the split of each sample.

    Returns:
        the trial, with records of all samples.

    Raises:
        VerificationError: there is none.
    """
    judged, everything = np.flatnonzero(split == "search"), np.arange(len(split))
    few = judged[np.unique(np.linspace(0, len(judged) - 1, min(len(judged), _FEW)).astype(int))]
    tried: list[Trial] = []
    for kept in _candidates(bench, few, progress):
        for samples in (few, everything):
            tried.append(bench.attempt(kept, samples, progress))
            if not tried[-1].change.within(limits):
                break
        else:
            return tried[-1]
    best = max(tried, key=lambda trial: trial.change.agreement)
    raise VerificationError(
        f"{best.change}, with {_listed(best.kept)} kept in float32; asked are {limits.min_agreement:.1%} and a loss of "
        f"at most {100 * limits.max_loss:g} points",
        hint="--min-agreement and --max-precision-loss allow more; thresholds are chosen again in any case.",
    )


def _candidates(bench: Bench, samples: NDArray[np.intp], progress: Progress) -> Iterator[tuple[str, ...]]:
    """Segments to keep: none; then, if the caller goes on, one more each time."""
    yield ()
    harm = {
        one: bench.attempt([other for other in bench.segments if other != one], samples, progress).change.agreement
        for one in bench.segments
    }
    worst_first = sorted(bench.segments, key=harm.__getitem__)
    for number in range(1, len(worst_first)):
        yield tuple(sorted(worst_first[:number]))


def _listed(kept: Sequence[str]) -> str:
    return ", ".join(kept) or "nothing"
