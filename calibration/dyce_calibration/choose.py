"""From records and costs to configurations: search, report on other samples, certify."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from dyce_calibration.certify import certified, check_promise, samples_needed
from dyce_calibration.costs import CostTable
from dyce_calibration.records import Records
from dyce_calibration.search import exact, published
from dyce_calibration.search.problem import Problem, Setting, make_problem
from dyce_runtime.configuration import FULL, Certificate, Configurations, Entry, Figures
from dyce_runtime.errors import DataError, UsageError

# The most accuracy that a named configuration may lose against the full model, on the search split.
ALLOWED_LOSS = {"accurate": 0.005, "balanced": 0.01, "fast": 0.02}
# A bundle keeps at most that much of the front.
MOST_KEPT = 64
CHOSEN = "chosen"
CERTIFIED = "certified"
_QUANTILE = 0.1
METHODS = ("exact", "onepass", "circular", "samethres")


@dataclass(frozen=True)
class Search:
    """How to search and what to promise.

    Attributes:
        method: one of :data:`METHODS`.
        weights: how many weights of accuracy against cost are solved.
        epsilon, delta: a certificate promises a loss of at most epsilon with probability at least 1 - delta.
        conservative: count on the 10 % quantile of each exit's accuracy instead of the accuracy; needs SciPy.
        max_loss: the cheapest configuration that loses at most this is named ``chosen``.
        max_cost: the most accurate configuration that costs at most this is named ``chosen``.
    """

    method: str = "exact"
    weights: int = 500
    epsilon: float = 0.01
    delta: float = 0.05
    seed: int = 0
    conservative: bool = False
    max_loss: float | None = None
    max_cost: float | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_promise(self.epsilon, self.delta)
        if self.method not in METHODS:
            raise UsageError(f"there is no search method {self.method!r}; expected one of {', '.join(METHODS)}")
        if self.weights < 1:
            raise UsageError(f"{self.weights} weights were asked for; expected at least 1")
        if self.max_loss is not None and not 0 <= self.max_loss < 1:
            raise UsageError(f"the largest loss is {self.max_loss:g}; expected a fraction, such as 0.003")
        if self.max_cost is not None and not self.max_cost > 0:
            raise UsageError(f"the largest cost is {self.max_cost:g}; expected a share of the full model, such as 0.6")


@dataclass(frozen=True)
class Outcome:
    """What a search found.

    Attributes:
        front: the whole of it, cheapest first.
        accuracies: what is counted on for each of them: the accuracy on the search split or, on request, less.
        base: the same for the full model.
        solved: for how many weights.
    """

    front: tuple[Entry, ...]
    accuracies: tuple[float, ...]
    base: float
    solved: int

    def cheapest(self, loss: float) -> Entry | None:
        """The cheapest configuration that loses at most ``loss``; None if there is none."""
        # A loss of exactly the allowance is allowed in floating point, too.
        fitting = [e for e, a in zip(self.front, self.accuracies, strict=True) if self.base - a <= loss + 1e-12]
        return min(fitting, key=lambda entry: _on_search(entry).cost, default=None)

    def most_accurate(self, cost: float) -> Entry | None:
        """The most accurate configuration that costs at most ``cost``; None if there is none."""
        fitting = [pair for pair in zip(self.accuracies, self.front, strict=True) if _on_search(pair[1]).cost <= cost]
        return max(fitting, key=lambda pair: pair[0])[1] if fitting else None


def choose(records: Records, costs: CostTable, how: Search = Search()) -> Configurations:
    """The configurations of a bundle: chosen on the split ``search``, reported on ``test``, certified on its own split.

    For every name of :data:`ALLOWED_LOSS` the cheapest within the allowed loss; ``full`` where none is cheaper.
    ``certified`` is the cheapest with a certificate, if any has one.

    Raises:
        DataError: a split has no samples, splits share samples, or a head has no cost.
    """
    _check_splits(records)
    _check_size(records.of_split("search"))
    parts = {name: make_problem(records.of_split(name), costs) for name in ("search", "certification", "test")}
    found = search_front(parts["search"], parts["test"], how)
    named = {FULL: _entry(parts["search"], parts["test"], parts["search"].off)}
    for name, loss in ALLOWED_LOSS.items():
        named[name] = found.cheapest(loss) or named[FULL]
    named |= _chosen(found, how)
    front = _thin(found.front)
    certificates, note = _certify(parts["certification"], [*named.values(), *front], how)
    promised = [entry for entry in front if entry.exits and _key(entry) in certificates]
    if promised:
        named[CERTIFIED] = promised[0]

    def with_certificate(entry: Entry) -> Entry:
        return msgspec.structs.replace(entry, certified=certificates.get(_key(entry)))

    return Configurations(
        named={name: with_certificate(entry) for name, entry in named.items()},
        front=tuple(map(with_certificate, front)),
        unit=costs.unit,
        method=how.method,
        note=note,
    )


def search_front(chosen_on: Problem, reported_on: Problem | None, how: Search) -> Outcome:
    """Search one problem, and say what each configuration found does there and on other samples."""
    solved = how.weights
    if not chosen_on.positions:
        settings: Iterable[Setting] = [chosen_on.off]
    elif how.method == "exact":
        # Equal steps of the odds: most of what matters lies where accuracy weighs much more than cost.
        odds = np.geomspace(0.5, 2000, how.weights)
        result = exact.search(chosen_on, (odds / (1 + odds)).tolist(), how.seed)
        settings, solved = result.front.settings(), result.solved
    elif how.method == "samethres":
        settings, solved = published.samethres(chosen_on), 0
    else:
        method = published.onepass if how.method == "onepass" else published.circular
        settings = method(chosen_on, np.linspace(0.5, 1.05, how.weights).tolist())
    front, accuracies = _undominated(chosen_on, {chosen_on.off, *settings}, _accuracy(how))
    entries = tuple(_entry(chosen_on, reported_on, setting) for setting in front)
    return Outcome(entries, tuple(accuracies), _accuracy(how)(*chosen_on.counts(chosen_on.off)), solved)


def _chosen(found: Outcome, how: Search) -> dict[str, Entry]:
    """The configuration that was asked for by its loss or its cost."""
    if how.max_loss is not None:
        entry = found.cheapest(how.max_loss)
    elif how.max_cost is not None:
        entry = found.most_accurate(how.max_cost)
    else:
        return {}
    if entry is None:
        raise UsageError(
            f"no configuration meets the limit; the cheapest costs {_on_search(found.front[0]).cost:.3f} of the full "
            f"model and loses {100 * _on_search(found.front[0]).loss:.2f} points"
        )
    return {CHOSEN: entry}


def _entry(chosen_on: Problem, reported_on: Problem | None, setting: Setting) -> Entry:
    test = reported_on.evaluate(setting) if reported_on else None
    return Entry(exits=chosen_on.exits(setting), search=chosen_on.evaluate(setting), test=test)


def _on_search(entry: Entry) -> Figures:
    assert entry.search is not None
    return entry.search


Counts = NDArray[np.int64]


def _undominated(
    problem: Problem, settings: Iterable[Setting], accuracy_of: Callable[[Counts, Counts], float]
) -> tuple[list[Setting], list[float]]:
    """The settings that no other beats in both cost and accuracy, cheapest first, and their accuracies."""
    rated = []
    for setting in settings:
        left, right = problem.counts(setting)
        rated.append((float(left @ problem.paid(setting)), -accuracy_of(left, right), setting))
    front: list[Setting] = []
    accuracies: list[float] = []
    for _, negative, setting in sorted(rated, key=lambda item: item[:2]):
        if not front or -negative > accuracies[-1]:
            front.append(setting)
            accuracies.append(-negative)
    return front, accuracies


def _accuracy(how: Search) -> Callable[[Counts, Counts], float]:
    """From the samples that leave at each exit, and those of them that are right, to the accuracy to count on."""
    if not how.conservative:
        return lambda left, right: int(right.sum()) / int(left.sum())
    try:
        from scipy.stats import beta
    except ImportError:
        raise UsageError(
            "conservative accuracies need SciPy, which is not installed",
            hint="pip install scipy, or search without --conservative; certificates need nothing.",
        ) from None

    def quantile(left: Counts, right: Counts) -> float:
        some = left > 0
        lower = beta.ppf(_QUANTILE, 1 + right[some], 1 + left[some] - right[some])
        return float(lower @ left[some] / left.sum())

    return quantile


def _thin(front: Sequence[Entry]) -> list[Entry]:
    """At most :data:`MOST_KEPT` entries, evenly spread, with both ends."""
    kept = np.unique(np.linspace(0, len(front) - 1, min(len(front), MOST_KEPT)).round().astype(int))
    return [front[index] for index in kept]


def _key(entry: Entry) -> tuple[object, ...]:
    return tuple(sorted((exit, on.head, on.threshold) for exit, on in entry.exits.items()))


def _certify(
    problem: Problem, entries: Sequence[Entry], how: Search
) -> tuple[dict[tuple[object, ...], Certificate], str]:
    """Certificates by configuration, and what to say if there are none."""
    bold = sorted({_key(e): e for e in entries if e.exits}.values(), key=lambda e: -_on_search(e).cost)
    losses = [problem.correct - problem.outcomes(problem.setting(entry.exits)) for entry in bold]
    count = certified(losses, how.epsilon, how.delta)
    certificate = Certificate(how.epsilon, how.delta, len(problem))
    found = {_key(entry): certificate for entry in bold[:count]}
    # The full model loses nothing against itself, whatever the samples.
    found[()] = certificate
    if count or not bold:
        return found, ""
    needed = samples_needed(losses[0], how.epsilon, how.delta)
    wanted = "no number of samples like these would do" if needed is None else f"about {needed} would be needed"
    return found, (
        f"nothing but the full model can be certified to lose at most {100 * how.epsilon:g} points with probability "
        f"{1 - how.delta:g} from the {len(problem)} certification samples; {wanted}"
    )


def _check_size(records: Records) -> None:
    classes = int(max(records.labels.max(), records.predictions.max())) + 1
    if len(records) < classes:
        raise DataError(
            f"there are {len(records)} samples to search on and {classes} classes; expected at least one of each",
            hint="Thresholds that are chosen on so few samples mean nothing. Give more samples.",
        )


def _check_splits(records: Records) -> None:
    names = ("search", "certification", "test")
    hashes = {name: np.unique(records.hashes[records.split == name]) for name in names}
    for name in names:
        if len(hashes[name]) == 0:
            raise DataError(f"the records have no samples of the split {name!r}; expected search, certification, test")
    for other in ("certification", "test"):
        shared = len(np.intersect1d(hashes["search"], hashes[other], assume_unique=True))
        if shared:
            raise DataError(
                f"{shared} samples are in the splits 'search' and {other!r}; what is chosen on a sample cannot be "
                "promised or reported on it"
            )
