"""Configurations as the page shows them: numbers are formatted here, so that the script only places them."""

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
    """A configuration as it is shown.

    Attributes:
        title: heading of the configuration.
        names: the named configurations that are equal to it.
        place: position of the slider, from 1; for a configuration off the front, that of the nearest one by cost.
        exits: per exit: its name, head, threshold, share of the test samples, share of the time (as in ``network``)
            that is spent between the previous exit and this one, and the first share as a fraction.
        figures: per split: its name, accuracy, loss, cost and number of samples.
        certificate: the certificate in words.
        certified: whether there is a certificate.
        network: per exit, the piece before it and its head: the piece's time as a share of the whole backbone's, the
            share of the test samples that reach it, and the share of this configuration's time that is spent there;
            costs instead of times if these are not known.
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
    """Return the configurations along the slider, cheapest first: the front and named configurations that lie on it.

    Named configurations are added because a bundle stores only a part of the front.
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
    """Return the named configurations; those on the front are the same objects as there."""
    views = {}
    for name, entry in contents.configurations.named.items():
        same = [view for view in front if name in view.names]
        cost = _known(entry.search).cost
        nearest = min(front, key=lambda view: abs(view.costs[0] - cost)).place
        title = f"{name}: beside the front, which has something as cheap and as accurate"
        views[name] = same[0] if same else _view(contents, entry, title, (name,), nearest)
    return views


def spent_in(contents: Contents) -> str:
    """Return in words what the drawing of the network shows shares of."""
    return "time" if contents.times else UNITS.get(contents.costs.unit, contents.costs.unit)


def timed_where(contents: Contents) -> str:
    """Return the machine, engine and day of the times; empty if there are no times or nothing is known about them."""
    measured = contents.times.measured if contents.times else {}
    known = [measured[key] for key in ("cpu", "target", "date") if key in measured]
    return f"measured on {', '.join(known)}, pictures per call: {measured.get('batch', '1')}" if known else ""


def percent(fraction: float) -> str:
    """Format a fraction in percent, with two decimals."""
    return f"{100 * fraction:.2f} %"


def points(fraction: float) -> str:
    """Format a difference of accuracies in percentage points."""
    return f"{100 * fraction:.2f} points"


def exit_name(exit: str) -> str:
    """Return an exit in words."""
    return "final head" if exit == FINAL else f"exit {exit}"


def in_words(entry: Entry) -> str:
    """Return the certificate of a configuration in words."""
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
    """Return the Pareto front of cost and accuracy on the search split, cheapest first."""
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
    """Return the network of :class:`View`. Savings by batching are ignored: the parts are those of single samples."""
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
    """Return whether the segment before an exit runs; one of a saver runs only if that saver's last exit is on."""
    exits = list(costs.backbone)
    end = next((saver for saver in costs.savers if exits.index(exit) <= exits.index(saver)), None)
    return end is None or saver_on[end]


def _setting(entry: Entry, exit: str) -> tuple[str, str]:
    """Return head and threshold in words."""
    if exit == FINAL:
        return "the model's own", "none"
    on = entry.exits.get(exit)
    return (on.head, f"{on.threshold:.6g}") if on else ("off", "none")


def _row(split: str, figures: Figures) -> tuple[str, str, str, str, str]:
    return split, percent(figures.accuracy), points(figures.loss), f"{figures.cost:.4f}", str(figures.samples)


def _known(figures: Figures | None) -> Figures:
    assert figures is not None  # make_contents drops configurations without figures
    return figures
