"""Compare candidate savers for a base: what each would save, by the published criterion and by the exact search.

The criterion is dC of TinySaver (arXiv 2403.17726); see :mod:`dyce_calibration.savers`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dyce_calibration.records import Records
from dyce_calibration.savers import TakeoverPoint, pair, saver_costs, take_over
from dyce_calibration.search.problem import make_problem
from dyce_calibration.search.run import Search, run
from dyce_export.doubts import accept
from dyce_export.savers.classes import doubts_of_saver
from dyce_export.savers.joint_verification import Mapped, Member, check_members, class_order
from dyce_export.savers.pool import Pool
from dyce_export.savers.resolve_saver import input_of
from dyce_runtime.bundle.configuration import Figures
from dyce_runtime.bundle.reader import RECORDS, Bundle
from dyce_runtime.bundle.test_vectors import read_vectors
from dyce_runtime.errors import DyceError, UsageError
from dyce_runtime.execution.contracts import TargetSpec
from dyce_runtime.execution.session import Session
from dyce_runtime.targets import registry

log = logging.getLogger("dyce_export")

# Latency is measured in rounds in which every model runs every test vector once, until one of the limits is reached.
_ROUNDS = 50
_MOST_SECONDS = 60.0


@dataclass(frozen=True)
class Judged:
    """A candidate and what it would save.

    Attributes:
        name: as the user gave it.
        accuracy: its accuracy on the search split.
        takeover: the share of the samples of that split that it can take over.
        macs: multiply-accumulates of one sample.
        ms: median milliseconds of a call with one sample.
        delta_macs, delta_ms: dC, its cost relative to the base minus the share that it takes over.
        search, test: figures on these splits of the cheapest configuration, in multiply-accumulates, with this saver
            and the base within the allowed loss; None if none is cheaper than the base.
    """

    name: str
    bundle: Bundle
    accuracy: float
    takeover: TakeoverPoint
    macs: int
    ms: float
    delta_macs: float
    delta_ms: float
    search: Figures | None
    test: Figures | None


@dataclass(frozen=True)
class Judgement:
    """The comparison of all candidates.

    Attributes:
        candidates: the best first.
        skipped: names of models that cannot be savers of this base, with the reasons.
        base_ms: median milliseconds of a call of the base with one sample.
        accuracy: accuracy of the base on the search split.
    """

    candidates: tuple[Judged, ...]
    skipped: dict[str, str]
    base_ms: float
    accuracy: float


@dataclass(frozen=True)
class Question:
    """How candidates are compared.

    Attributes:
        mapping: between the classes; see :func:`dyce_export.savers.joint_verification.read_mapping`.
        max_loss: the accuracy that the search may lose, a fraction.
        by: unit of dC by which candidates are sorted, ``ms`` or ``macs``.
        target: target on which latency is measured; None for the first that works on this machine.
        threads: threads per call; None for the target's own choice.
        trust_pickle: see :func:`dyce_export.sources.source.load_source`.
    """

    mapping: Mapped | None = None
    max_loss: float = 0.005
    by: str = "ms"
    target: str | None = None
    threads: int | None = None
    trust_pickle: bool = False


def judge(base: Bundle, names: Sequence[str], pool: Pool, how: Question) -> Judgement:
    """Judge every candidate as the only saver of a base. Models that cannot be a saver are skipped with the reason.

    Args:
        base: a bundle with records.
        names: see :func:`dyce_export.savers.resolve_saver.load_named`.

    Raises:
        UsageError: no model can be a saver, or the base has savers already.
    """
    like, own = Records.load(base.file(RECORDS)), Member.of(base)
    found: dict[str, tuple[Bundle, Records]] = {}
    skipped: dict[str, str] = {}
    for name in names:
        try:
            model = pool.ready(name, input_of(base), trust_pickle=how.trust_pickle)
            others = [Member.of(other) for other, _ in found.values()]
            check_members(own, [*others, Member.of(model)], how.mapping)
            bundle = pool.recorded(pool.with_pictures(model, how.mapping))
            records = pool.records(bundle, like)
            order = class_order(bundle.manifest.model, base.manifest.model, how.mapping)
            accept(doubts_of_saver(bundle.manifest.model.name, records, order, like), allowed=pool.allow_suspicious)
            found[name] = bundle, records
        except DyceError as error:
            skipped[name] = error.message
            log.warning("%s is skipped: %s", name, error)
    if not found:
        raise UsageError(f"none of the {len(names)} models of the pool can be a saver", hint="The reasons are above.")
    with pool.progress.stage("latency"):
        base_ms, *times = milliseconds([base, *(bundle for bundle, _ in found.values())], how.target, how.threads)
    candidates = []
    for (name, (bundle, records)), ms in zip(found.items(), times, strict=True):
        order = class_order(bundle.manifest.model, base.manifest.model, how.mapping)
        if order is not None:
            records = records.with_classes(np.argsort(order)[records.predictions])
        candidates.append(_judged(name, bundle, records, like, (ms, base_ms), base.manifest.model.macs, how.max_loss))
    best = sorted(candidates, key=lambda one: one.delta_ms if how.by == "ms" else one.delta_macs)
    return Judgement(tuple(best), skipped, base_ms, like.of_split("search").accuracy())


def milliseconds(bundles: Sequence[Bundle], target: str | None, threads: int | None) -> list[float]:
    """Measure the median milliseconds of a call with one sample of every uncut model.

    The models run in turn, so that other load on the machine slows all of them alike.
    """
    target = registry.find(target or registry.named()).name
    sessions = [Session(bundle, target, TargetSpec(threads=threads), allow_untrained=True) for bundle in bundles]
    samples = [read_vectors(bundle).inputs for bundle in bundles]
    seconds: list[list[float]] = [[] for _ in bundles]
    end = time.perf_counter() + _MOST_SECONDS
    for turn in range(_ROUNDS + 1):
        for session, inputs, times in zip(sessions, samples, seconds, strict=True):
            for row in range(len(inputs[session.manifest.input.name])):
                sample = inputs[session.manifest.input.name][row : row + 1]
                start = time.perf_counter()
                session.run_uncut(sample)
                if turn:  # the first one warms up
                    times.append(time.perf_counter() - start)
        if turn and time.perf_counter() > end:
            break
    for session in sessions:
        session.close()
    return [1e3 * float(np.median(times)) for times in seconds]


def _judged(
    name: str,
    bundle: Bundle,
    records: Records,
    like: Records,
    ms: tuple[float, float],
    base_macs: int,
    max_loss: float,
) -> Judged:
    """Judge one candidate by its records and those of the base on the same samples.

    Args:
        like: records of the base.
        ms: milliseconds of the candidate and of the base.
    """
    both, macs = pair(records, like), bundle.manifest.model.macs
    problems = {split: make_problem(both.of_split(split), saver_costs(macs, base_macs)) for split in ("search", "test")}
    searched = both.of_split("search")
    point = take_over(searched.scores[:, 0], *searched.loss.T)
    setting = run(problems["search"], None, Search()).cheapest(max_loss)
    of_search, of_test = (
        None if setting is None or not any(setting) else problems[s].evaluate(setting) for s in problems
    )
    return Judged(
        name,
        bundle,
        accuracy=searched.accuracy(0),
        takeover=point,
        macs=macs,
        ms=ms[0],
        delta_macs=macs / base_macs - point.share,
        delta_ms=ms[0] / ms[1] - point.share,
        search=of_search,
        test=of_test,
    )
