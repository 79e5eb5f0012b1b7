"""Configurations as the page shows them: every number is already text here, so that the script only places it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dyce_calibration.report.contents import Contents
from dyce_calibration.search.costs import CostTable
from dyce_runtime.bundle.configuration import Certificate, Entry, Figures, settings_of
from dyce_runtime.bundle.manifest import FINAL

UNITS = {"macs": "multiply-accumulates", "ms": "milliseconds", "joules": "joules"}


@dataclass(frozen=True)
class View:
    """One configuration.

    Attributes:
        names: the named configurations that are the same.
        place: where the slider stands, from 1; for one beside the front, at the nearest in cost.
        exits: per exit: its name, head, threshold, share of the test samples, share of the time (as in ``network``)
            that is spent on the way there from the exit before, and the first share as a fraction.
        network: per exit, the piece before it and its head: its time as a share of the whole backbone's, the share
            of the test samples that get there, and the share of this configuration's time that is spent there; costs
            where no times are known.
        figures: per split: its name, accuracy, loss, cost and samples.
        costs, accuracies: on search and on test, as fractions.
    """

    title: str
    names: tuple[str, ...]
    place: int
    exits: tuple[tuple[str, str, str, str, str, float], ...]
    figures: tuple[tuple[str, str, str, str, str], ...]
    certificate: str
    certified: bool
    network: tuple[tuple[float, float, float], ...]
    costs: tuple[float, float]
    accuracies: tuple[float, float]


def front_views(contents: Contents) -> list[View]:
    """What the slider moves along, cheapest first: the front and those named configurations that lie on it.

    A bundle keeps a part of the front only, so a named configuration can be missing from it.
    """
    configurations = contents.configurations
    entries = _undominated([*configurations.front, *configurations.named.values()])
    views = []
    for place, entry in enumerate(entries, 1):
        names = tuple(name for name, other in configurations.named.items() if settings_of(other) == settings_of(entry))
        title = f"Configuration {place} of {len(entries)}" + (f": {', '.join(names)}" if names else "")
        views.append(_view(contents, entry, title, names, place))
    return views


def named_views(contents: Contents, front: Sequence[View]) -> dict[str, View]:
    """The named configurations; one that lies on the front is the one there."""
    views = {}
    for name, entry in contents.configurations.named.items():
        same = [view for view in front if name in view.names]
        cost = _known(entry.search).cost
        nearest = min(front, key=lambda view: abs(view.costs[0] - cost)).place
        title = f"{name}: beside the front, which has something as cheap and as accurate"
        views[name] = same[0] if same else _view(contents, entry, title, (name,), nearest)
    return views


def spent_in(contents: Contents) -> str:
    """What the drawing of the network shows the shares of, in words."""
    return "time" if contents.times else UNITS.get(contents.costs.unit, contents.costs.unit)


def timed_where(contents: Contents) -> str:
    """The machine, engine and day of the times; empty where there are none, or nothing is known of them."""
    measured = contents.times.measured if contents.times else {}
    known = [measured[key] for key in ("cpu", "target", "date") if key in measured]
    return f"measured on {', '.join(known)}, pictures per call: {measured.get('batch', '1')}" if known else ""


def percent(fraction: float) -> str:
    """A fraction in percent, with two decimals."""
    return f"{100 * fraction:.2f} %"


def points(fraction: float) -> str:
    """A difference of accuracies in percentage points."""
    return f"{100 * fraction:.2f} points"


def exit_name(exit: str) -> str:
    """An exit in words."""
    return "final head" if exit == FINAL else f"exit {exit}"


def in_words(entry: Entry) -> str:
    """The certificate of a configuration."""
    if not entry.exits:
        return "This is the full model: it loses nothing against itself."
    if entry.certified is None:
        return "Not certified: nothing is promised about its loss on unseen data."
    return _promise(entry.certified)


def _promise(certificate: Certificate) -> str:
    allowed = 100 * certificate.epsilon
    return (
        f"Certified: with probability at least {100 * (1 - certificate.delta):g} % it loses at most {allowed:g} "
        f"point{'' if allowed == 1 else 's'} of accuracy against the full model on unseen data like this "
        f"({certificate.samples} samples of the split {certificate.split}, which took no part in the search)."
    )


def _undominated(entries: Sequence[Entry]) -> list[Entry]:
    """The entries that no other beats in both cost and accuracy on the search split, cheapest first."""
    front: list[Entry] = []
    for entry in sorted(entries, key=lambda e: (_known(e.search).cost, -_known(e.search).accuracy)):
        if not front or _known(entry.search).accuracy > _known(front[-1].search).accuracy:
            front.append(entry)
    return front


def _view(contents: Contents, entry: Entry, title: str, names: tuple[str, ...], place: int) -> View:
    search, test = _known(entry.search), _known(entry.test)
    network = _network(contents, entry, test)
    return View(
        title=title,
        names=names,
        place=place,
        exits=tuple(
            (exit_name(exit), *_setting(entry, exit), percent(share), f"{part[2]:.0%}", share)
            for exit, share, part in zip(contents.exits, test.share_per_exit, network, strict=True)
        ),
        network=network,
        figures=(_row("search (chosen on it)", search), _row("test", test)),
        certificate=in_words(entry),
        certified=entry.certified is not None and bool(entry.exits),
        costs=(search.cost, test.cost),
        accuracies=(search.accuracy, test.accuracy),
    )


def _network(contents: Contents, entry: Entry, test: Figures) -> tuple[tuple[float, float, float], ...]:
    """See :class:`View`. What a batch may save is left out, so that the parts are those of one sample at a time."""
    costs = contents.times or contents.costs
    backbone = list(costs.backbone.values())
    segments = np.diff(backbone, prepend=0.0)
    last_on = {saver: saver in entry.exits for saver in costs.savers}
    reach = 1 - np.cumsum([0.0, *test.share_per_exit[:-1]])
    paid = []
    for exit, segment in zip(contents.exits, segments.tolist(), strict=True):
        on = entry.exits.get(exit)
        runs = segment if _runs(costs, exit, last_on) else 0.0
        paid.append(runs + (costs.heads.get(exit, {}).get(on.head, 0.0) if on else 0.0))
    spent = reach * np.array(paid)
    widths = segments / max(backbone[-1], 1e-12)
    shares = spent / max(float(spent.sum()), 1e-12)
    return tuple(zip(widths.tolist(), np.clip(reach, 0, 1).tolist(), shares.tolist(), strict=True))


def _runs(costs: CostTable, exit: str, saver_on: Mapping[str, bool]) -> bool:
    """Whether the segment before an exit runs: one of a saver only if an exit at the end of that saver is on."""
    exits = list(costs.backbone)
    end = next((saver for saver in costs.savers if exits.index(exit) <= exits.index(saver)), None)
    return end is None or saver_on[end]


def _setting(entry: Entry, exit: str) -> tuple[str, str]:
    """Head and threshold."""
    if exit == FINAL:
        return "the model's own", "none"
    on = entry.exits.get(exit)
    return (on.head, f"{on.threshold:.6g}") if on else ("off", "none")


def _row(split: str, figures: Figures) -> tuple[str, str, str, str, str]:
    return split, percent(figures.accuracy), points(figures.loss), f"{figures.cost:.4f}", str(figures.samples)


def _known(figures: Figures | None) -> Figures:
    assert figures is not None  # make_contents leaves out what has none
    return figures
