"""From records and costs to configurations: search, report on other samples, certify."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence

import msgspec
import numpy as np

from dyce_calibration.promises.certify import certified, samples_needed
from dyce_calibration.records import Records
from dyce_calibration.search.costs import CostTable
from dyce_calibration.search.problem import Problem, Setting, make_problem
from dyce_calibration.search.run import Outcome, Search, run, thinned
from dyce_runtime.bundle.configuration import FULL, Certificate, Configurations, Entry, settings_of
from dyce_runtime.errors import DataError, UsageError

# The most accuracy that a named configuration may lose against the full model, on the search split.
ALLOWED_LOSS = {"accurate": 0.005, "balanced": 0.01, "fast": 0.02}
# A bundle keeps at most that much of the front.
MOST_KEPT = 64
CHOSEN = "chosen"
CERTIFIED = "certified"
# By how many standard errors the loss on test has to exceed what was allowed before it is called luck.
_BEYOND_CHANCE = 3.0
# With fewer search samples, what is chosen lost on other samples 1 to 3 points more (Fashion-MNIST, 6 exits).
_FEW = 1000

log = logging.getLogger("dyce_calibration")


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
    found = run(parts["search"], parts["test"], how)

    def entry(setting: Setting, allowed: float | None = None) -> Entry:
        search, test = (parts[name].evaluate(setting) for name in ("search", "test"))
        return Entry(parts["search"].exits(setting), search, test, allowed_loss=allowed)

    full = parts["search"].off
    settings = {FULL: full, **{name: found.cheapest(loss) or full for name, loss in ALLOWED_LOSS.items()}}
    _warn_about_luck(settings, parts["test"], len(parts["search"]))
    allowed = ALLOWED_LOSS | ({} if how.max_loss is None else {CHOSEN: how.max_loss})
    named = {name: entry(setting, allowed.get(name)) for name, setting in (settings | _chosen(found, how)).items()}
    front = [entry(setting) for setting in thinned(found.settings, MOST_KEPT)]
    certificates, note = _certify(parts["certification"], [*named.values(), *front], how)
    promised = [entry for entry in front if entry.exits and settings_of(entry) in certificates]
    if promised:
        named[CERTIFIED] = msgspec.structs.replace(promised[0], allowed_loss=how.epsilon)

    def with_certificate(entry: Entry) -> Entry:
        return msgspec.structs.replace(entry, certified=certificates.get(settings_of(entry)))

    return Configurations(
        named={name: with_certificate(entry) for name, entry in named.items()},
        front=tuple(map(with_certificate, front)),
        unit=costs.unit,
        method=how.method,
        note=note,
    )


def _warn_about_luck(settings: Mapping[str, Setting], test: Problem, searched: int) -> None:
    """Say when samples are few, and where the test samples show that they flattered what was chosen on them."""
    lucky = []
    for name, allowed in ALLOWED_LOSS.items():
        lost = test.lost(settings[name])
        if lost.mean() - allowed > _BEYOND_CHANCE * lost.std() / len(lost) ** 0.5:
            lucky.append(f"{name} loses {100 * lost.mean():.1f} points instead of {100 * allowed:g}")
    if lucky or searched < _FEW:
        log.warning(
            "configurations are chosen on %d samples and may lose more on others%s. Give more samples, or choose with "
            "`dyce search BUNDLE --conservative`; `certified`, where there is one, is a promise",
            searched,
            f": on test samples {', '.join(lucky)}" if lucky else "",
        )


def _chosen(found: Outcome, how: Search) -> dict[str, Setting]:
    """The setting that was asked for by its loss or its cost."""
    if how.max_loss is not None:
        setting = found.cheapest(how.max_loss)
    elif how.max_cost is not None:
        setting = found.most_accurate(how.max_cost)
    else:
        return {}
    if setting is None:
        raise UsageError(
            f"no configuration meets the limit; the cheapest costs {found.cost[0]:.3f} of the full model and loses "
            f"{100 * (found.base - found.counted[0]):.2f} points, the most accurate costs {found.cost[-1]:.3f} and "
            f"loses {100 * (found.base - found.counted[-1]):.2f}"
        )
    return {CHOSEN: setting}


def _dearest_first(entry: Entry) -> float:
    assert entry.search is not None
    return -entry.search.cost


def _certify(problem: Problem, entries: Sequence[Entry], how: Search) -> tuple[dict[Hashable, Certificate], str]:
    """Certificates by configuration, and what to say if there are none."""
    bold = sorted({settings_of(e): e for e in entries if e.exits}.values(), key=_dearest_first)
    losses = [problem.lost(problem.setting(entry.exits)) for entry in bold]
    count = certified(losses, how.epsilon, how.delta)
    certificate = Certificate(how.epsilon, how.delta, len(problem))
    found = {settings_of(entry): certificate for entry in bold[:count]}
    # The full model loses nothing against itself, whatever the samples.
    found[settings_of(Entry({}))] = certificate
    if count or not bold:
        return found, ""
    needed = samples_needed(losses[0], how.epsilon, how.delta)
    wanted = "no number of samples like these would" if needed is None else f"about {needed} would be needed"
    points = 100 * how.epsilon
    return found, (
        f"no early exit is certified: {len(problem)} certification samples do not show a loss of at most "
        f"{points:g} point{'' if points == 1 else 's'} with probability {1 - how.delta:g}; {wanted}"
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
