"""Choose the configurations of a bundle from records and costs: search, report on unseen samples, and certify."""

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

# The most accuracy, as a fraction, that a named configuration may lose against the full model on the search split.
ALLOWED_LOSS = {"accurate": 0.005, "balanced": 0.01, "fast": 0.02}
# A bundle keeps at most this many configurations of the front.
MOST_KEPT = 64
CHOSEN = "chosen"
CERTIFIED = "certified"
# Number of standard errors by which the loss on the test split has to exceed the allowed loss for a warning.
_BEYOND_CHANCE = 3.0
# With fewer search samples, the chosen configurations lost 1 to 3 points more on unseen samples (Fashion-MNIST, 6
# exits).
_FEW = 1000

log = logging.getLogger("dyce_calibration")


def choose(records: Records, costs: CostTable, how: Search = Search()) -> Configurations:
    """Choose configurations on the split ``search``, report them on ``test``, and certify them on ``certification``.

    Each name of :data:`ALLOWED_LOSS` denotes the cheapest configuration within its allowed loss, or the full model if
    none is cheaper. ``chosen`` is what ``how`` asks for by its largest loss or cost. ``certified`` is the cheapest
    configuration of the front with a certificate, if there is one.

    Raises:
        DataError: a split has no samples, splits share samples, or a head has no cost.
        UsageError: no configuration meets the limit in ``how``.
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
    """Warn if there are few search samples, or if a configuration loses significantly more on test than allowed."""
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
    """Return the setting with the requested limit on loss or cost, by name; empty without a limit.

    Raises:
        UsageError: no setting meets the limit.
    """
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


def _most_expensive_first(entry: Entry) -> float:
    assert entry.search is not None
    return -entry.search.cost


def _certify(problem: Problem, entries: Sequence[Entry], how: Search) -> tuple[dict[Hashable, Certificate], str]:
    """Return the certificates by configuration, and a note for the user if no early exit is certified."""
    bold = sorted({settings_of(e): e for e in entries if e.exits}.values(), key=_most_expensive_first)
    losses = [problem.lost(problem.setting(entry.exits)) for entry in bold]
    count = certified(losses, how.epsilon, how.delta)
    certificate = Certificate(how.epsilon, how.delta, len(problem))
    found = {settings_of(entry): certificate for entry in bold[:count]}
    # The full model never loses anything against itself.
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
