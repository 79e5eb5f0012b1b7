"""The contents of a report as data: everything is computed here, with numpy only."""

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

# In order of use.
SPLITS = ("heads", "temperature", "search", "certification", "test")
# Weights of the one-pass search, and the largest amount of work (samples x heads x exits), about ten seconds.
_WEIGHTS = 20
_MOST_WORK = 3_000_000


@dataclass(frozen=True)
class Baseline:
    """Configurations that another method found on the split ``search``, with their figures on the split ``test``.

    Attributes:
        method: ``samethres`` or ``onepass``.
        costs: relative to the full model, ascending.
        accuracies: fractions, one for each cost.
        missing: why there are no configurations; empty if there are some.
    """

    method: str
    costs: tuple[float, ...]
    accuracies: tuple[float, ...]
    missing: str = ""


@dataclass(frozen=True)
class Contents:
    """The contents of the report that :func:`dyce_calibration.report.write_report` makes.

    Attributes:
        model_name: name of the model.
        class_names: class names in index order; None shows indices.
        samples: number of samples per split, in order of use.
        costs: the costs with which the configurations were searched.
        exits: ids in execution order, ``final`` last; the order of every ``share_per_exit``.
        configurations: those with figures on the splits ``search`` and ``test``.
        uncut: figures of the full model.
        baselines: results of other search methods.
        reliability: of every head on the split ``test``, the final head last.
        examples: example images.
        splits: where the samples come from; None if that is not known.
        suspicious: reasons to doubt the results, one sentence each.
        times: milliseconds of each piece; None if they were not measured.
        measured: what a benchmark measured of the configurations on this machine.
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
    """Compute the contents of a report.

    Args:
        model_name: name of the model.
        class_names: in index order; None shows indices.
        records: records that contain the splits ``search`` and ``test``; samples of other splits are only counted.
        costs: the costs with which the configurations were searched.
        configurations: as ``choose`` returns them. Those without figures on both splits are left out.
        examples: as ``choose_examples`` returns them; may be empty.
        splits, suspicious: from the manifest.
        times: milliseconds of the same pieces, which the drawing of the network shows instead of ``costs``.
        measured: what a benchmark measured of the configurations on this machine.

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
