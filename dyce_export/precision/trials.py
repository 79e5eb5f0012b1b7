"""Choosing the segments to lower: those whose lowering changes too many decisions stay in float32.

The choice is made on the split ``search`` alone, so that the other splits can measure the result.
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

# Number of samples on which a trial is judged first, before it runs on all of them.
_FEW = 1000

# Returns the network with all pieces lowered but those with the given ids.
Convert: TypeAlias = Callable[[Sequence[str]], ir.Model]


@dataclass(frozen=True)
class Limits:
    """How much a lower precision may change.

    Attributes:
        min_agreement: smallest share of samples that take the same exit under the thresholds of float32.
        max_loss: largest loss of the full model's accuracy, as a fraction.
    """

    min_agreement: float = 0.99
    max_loss: float = 0.01


@dataclass(frozen=True)
class Change:
    """What a lower precision changes on a set of samples.

    Attributes:
        agreement: share of samples that take the same exit, the lowest over the named configurations of float32.
        before, now: accuracy of the full model in float32 and in the lower precision.
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
        """Return whether the change is within limits."""
        return self.agreement >= limits.min_agreement and self.before - self.now <= limits.max_loss

    def __str__(self) -> str:
        return (
            f"{self.agreement:.1%} of the samples leave at the same exit as in float32, and the full model is right on "
            f"{self.now:.1%} instead of {self.before:.1%}"
        )


@dataclass(frozen=True)
class Trial:
    """The network with some segments kept in float32, and how its decisions changed.

    Attributes:
        kept: ids of the segments kept in float32.
        manifest: manifest with the pieces as written.
        records: records of the lowered pieces, for the same samples as the float32 records.
        change: change on the samples of the split ``search``.
    """

    kept: tuple[str, ...]
    manifest: Manifest
    records: Records
    change: Change


@dataclass(frozen=True)
class Method:
    """How a network is lowered, and what runs it then.

    Attributes:
        precision: name of the precision.
        network: the network in float32.
        convert: lowers the network.
        target: the target that makes the records.
        calibration: number of images used to measure ranges.
        divisible: whether some segments can be kept while others are lowered.
    """

    precision: str
    network: Network
    convert: Convert
    target: str
    calibration: int = 0
    divisible: bool = True


class Bench:
    """Makes trials in one folder, whose pieces every trial replaces.

    Args:
        known: float32 records of the samples in ``pictures``.

    Attributes:
        named: the named configurations of the float32 bundle.
        segments: ids of the segments that can be kept in float32.
    """

    def __init__(self, bundle: Bundle, method: Method, known: Records, pictures: Dataset, folder: Path) -> None:
        self._method, self._known, self._pictures, self._folder = method, known, pictures, folder
        self.named: list[Configuration] = [bundle.configuration(name) for name in bundle.configurations.named]
        ids: dict[str, list[str]] = {"segment": [], "head": [], "span": []}
        for piece in bundle.manifest.pieces:
            ids[piece.role].append(piece.id)
        self.segments, self._heads = tuple(ids["segment"]) if method.divisible else (), ids["head"]

    def attempt(self, kept: Sequence[str], samples: NDArray[np.intp], progress: Progress) -> Trial:
        """Lower all segments but ``kept`` and run the samples with these indices, of shape (n,)."""
        lowered = self._method.convert([*self._heads, *kept])
        manifest = write_lowered(self._method.network, lowered, self._method.precision, self._folder)
        known, pictures = self._known.take(samples), self._pictures.take(samples)
        only_full = Configurations(named={FULL: Entry(exits={})})
        with Session(Bundle(self._folder, manifest, only_full), self._method.target, TargetSpec()) as session:
            records = record(session, pictures, known.split, lambda starts: progress.track(starts, "recording"))
        change = Change.between(known.of_split("search"), records.of_split("search"), self.named)
        return Trial(tuple(kept), manifest, records, change)


def best_trial(bench: Bench, split: NDArray[np.str_], limits: Limits, progress: Progress) -> Trial:
    """Return the first trial within the limits: all segments lowered, then fewer and fewer, most harmful first kept.

    Args:
        split: (N,) names of the samples' splits.

    Returns:
        the trial, with records of all samples.

    Raises:
        VerificationError: no trial is within the limits.
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
        f"{best.change}, with {_listed(best.kept)} kept in float32; required are {limits.min_agreement:.1%} and a loss "
        f"of at most {100 * limits.max_loss:g} points",
        hint="--min-agreement and --max-precision-loss allow more; thresholds are chosen again in any case.",
    )


def _candidates(bench: Bench, samples: NDArray[np.intp], progress: Progress) -> Iterator[tuple[str, ...]]:
    """Yield sets of segments to keep in float32: none, then one more each time."""
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
