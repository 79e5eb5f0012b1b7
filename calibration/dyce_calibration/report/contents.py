"""What stands in a report, as data: everything is computed here, with numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from dyce_calibration.records import Records
from dyce_calibration.report.examples import Example
from dyce_calibration.report.reliability import Reliability, reliability
from dyce_calibration.search.costs import CostTable
from dyce_calibration.search.problem import Problem, make_problem
from dyce_calibration.search.run import Search, run
from dyce_runtime.bundle.configuration import Configurations, Entry
from dyce_runtime.bundle.manifest import Splits
from dyce_runtime.bundle.measured import NOTHING, MeasuredHere
from dyce_runtime.errors import DataError, UsageError

# In the order in which they are used.
SPLITS = ("heads", "temperature", "search", "certification", "test")
# Weights of the one-pass search, and the most work (samples x heads x exits) for which it takes about ten seconds.
_WEIGHTS = 20
_MOST_WORK = 3_000_000


@dataclass(frozen=True)
class Baseline:
    """Configurations found another way on the split ``search``, cheapest first, as the split ``test`` sees them.

    Attributes:
        method: ``samethres`` or ``onepass``.
        costs: relative to the full model.
        accuracies: fractions, one for each cost.
        missing: why there are none; empty if there are.
    """

    method: str
    costs: tuple[float, ...]
    accuracies: tuple[float, ...]
    missing: str = ""


@dataclass(frozen=True)
class Contents:
    """What :func:`dyce_calibration.report.write_report` shows.

    Attributes:
        samples: per split, in the order of use.
        exits: ids in execution order, ``final`` last; the order of every ``share_per_exit``.
        configurations: those with figures on the splits ``search`` and ``test``.
        uncut: the model as it was.
        reliability: of every head on the split ``test``, the final head last.
        splits: where the samples come from; None if that is not known.
        suspicious: what speaks against the results, a sentence each.
        times: what each piece takes, in milliseconds; None where that was not measured.
        measured: what a benchmark has measured of configurations here.
    """

    model_name: str
    class_names: tuple[str, ...] | None
    samples: dict[str, int]
    costs: CostTable
    exits: tuple[str, ...]
    configurations: Configurations
    uncut: Entry
    baselines: tuple[Baseline, ...]
    reliability: tuple[Reliability, ...]
    examples: tuple[Example, ...]
    splits: Splits | None = None
    suspicious: tuple[str, ...] = ()
    times: CostTable | None = None
    measured: MeasuredHere = NOTHING


def make_contents(
    model_name: str,
    class_names: tuple[str, ...] | None,
    records: Records,
    costs: CostTable,
    configurations: Configurations,
    examples: Sequence[Example] = (),
    splits: Splits | None = None,
    suspicious: Sequence[str] = (),
    times: CostTable | None = None,
    measured: MeasuredHere = NOTHING,
) -> Contents:
    """Compute what a report shows.

    Args:
        class_names: in index order; None shows indices.
        records: with the splits ``search`` and ``test``; others are counted only.
        costs: those that the configurations were searched with.
        configurations: as ``choose`` returns them. Those without figures on both splits are left out.
        examples: as ``choose_examples`` returns them; may be empty.
        splits, suspicious: of the manifest.
        times: of the same pieces, in milliseconds: what the drawing of the network shows, instead of ``costs``.
        measured: what a benchmark has measured of them here.

    Raises:
        DataError: a split has no samples, a head has no cost, or the configurations were searched in another unit or
            not at all.
    """
    if configurations.unit != costs.unit:
        raise DataError(
            f"the configurations were searched with costs in {configurations.unit}, the cost table has {costs.unit}",
            hint="Use the cost table of the search.",
        )
    shown = _with_figures(configurations)
    if not (shown.front or shown.named):
        raise DataError("no configuration has figures on the splits search and test; expected searched ones")
    search, test = (make_problem(records.of_split(name), costs) for name in ("search", "test"))
    uncut = Entry(exits={}, search=search.evaluate(search.off), test=test.evaluate(test.off))
    return Contents(
        model_name=model_name,
        class_names=class_names,
        samples=_samples(records, splits),
        costs=costs,
        exits=tuple(costs.backbone),
        configurations=shown,
        uncut=uncut,
        baselines=(_baseline("samethres", search, test), _baseline("onepass", search, test)),
        reliability=reliability(records.of_split("test")),
        examples=tuple(examples),
        splits=splits,
        suspicious=tuple(suspicious),
        times=times,
        measured=measured,
    )


def _samples(records: Records, splits: Splits | None) -> dict[str, int]:
    names, counts = np.unique(records.split, return_counts=True)
    found = {**(splits.samples if splits else {}), **dict(zip(names.tolist(), counts.tolist(), strict=True))}
    order = [name for name in SPLITS if name in found]
    return {name: found[name] for name in (*order, *sorted(set(found) - set(order)))}


def _with_figures(configurations: Configurations) -> Configurations:
    def complete(entry: Entry) -> bool:
        return entry.search is not None and entry.test is not None

    return msgspec.structs.replace(
        configurations,
        named={name: entry for name, entry in configurations.named.items() if complete(entry)},
        front=tuple(filter(complete, configurations.front)),
    )


def _baseline(method: str, search: Problem, test: Problem) -> Baseline:
    heads = sum(len(position.heads) for position in search.positions)
    if not all(position.heads for position in search.positions) or not heads:
        return Baseline(method, (), (), "not every exit has a head")
    if method == "onepass" and len(search) * heads * len(search.positions) > _MOST_WORK:
        return Baseline(method, (), (), f"too slow for {len(search)} samples and {heads} heads")
    try:
        found = run(search, test, Search(method=method, weights=_WEIGHTS))
    except UsageError as error:  # SciPy is not installed
        return Baseline(method, (), (), error.message)
    assert found.test_cost is not None
    assert found.test_accuracy is not None
    return Baseline(method, tuple(found.test_cost.tolist()), tuple(found.test_accuracy.tolist()))
