"""From records and costs to configurations: search, report on other samples, certify."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

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
METHODS = ("exact", "onepass", "circular", "samethres")


@dataclass(frozen=True)
class Search:
    """How to search and what to promise.

    Attributes:
        method: one of :data:`METHODS`.
        weights: how many weights of accuracy against cost are solved.
        epsilon, delta: a certificate promises a loss of at most epsilon with probability at least 1 - delta.
    """

    method: str = "exact"
    weights: int = 500
    epsilon: float = 0.01
    delta: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_promise(self.epsilon, self.delta)
        if self.method not in METHODS:
            raise UsageError(f"there is no search method {self.method!r}; expected one of {', '.join(METHODS)}")
        if self.weights < 1:
            raise UsageError(f"{self.weights} weights were asked for; expected at least 1")


@dataclass(frozen=True)
class Outcome:
    """What a search found: the whole front, cheapest first, and how many weights were solved."""

    front: tuple[Entry, ...]
    solved: int


def choose(records: Records, costs: CostTable, how: Search = Search()) -> Configurations:
    """The configurations of a bundle: chosen on the split ``search``, reported on ``test``, certified on its own split.

    For every name of :data:`ALLOWED_LOSS` the cheapest within the allowed loss; ``full`` where none is cheaper.

    Raises:
        DataError: a split has no samples, splits share samples, or a head has no cost.
    """
    _check_splits(records)
    parts = {name: make_problem(records.of_split(name), costs) for name in ("search", "certification", "test")}
    found = search_front(parts["search"], parts["test"], how)
    named = {FULL: _entry(parts["search"], parts["test"], parts["search"].off)}
    for name, loss in ALLOWED_LOSS.items():
        named[name] = cheapest(found.front, loss) or named[FULL]
    front = _thin(found.front)
    certificates, note = _certify(parts["certification"], [*named.values(), *front], how)

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
    entries = [_entry(chosen_on, reported_on, setting) for setting in {chosen_on.off, *settings}]
    return Outcome(_undominated(entries), solved)


def cheapest(front: Sequence[Entry], loss: float) -> Entry | None:
    """The cheapest configuration that loses at most ``loss`` on the search split; None if there is none."""
    # Counted in samples, so that a loss of exactly the allowance is allowed in floating point, too.
    fitting = [
        entry
        for entry in front
        if round(_on_search(entry).loss * _on_search(entry).samples) <= round(loss * _on_search(entry).samples, 9)
    ]
    return min(fitting, key=lambda entry: _on_search(entry).cost, default=None)


def _entry(chosen_on: Problem, reported_on: Problem | None, setting: Setting) -> Entry:
    test = reported_on.evaluate(setting) if reported_on else None
    return Entry(exits=chosen_on.exits(setting), search=chosen_on.evaluate(setting), test=test)


def _on_search(entry: Entry) -> Figures:
    assert entry.search is not None
    return entry.search


def _undominated(entries: list[Entry]) -> tuple[Entry, ...]:
    """The entries that no other beats in both cost and accuracy on the search split, cheapest first."""
    front: list[Entry] = []
    for entry in sorted(entries, key=lambda e: (_on_search(e).cost, -_on_search(e).accuracy)):
        if not front or _on_search(entry).accuracy > _on_search(front[-1]).accuracy:
            front.append(entry)
    return tuple(front)


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
