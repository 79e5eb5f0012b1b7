from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

import dyce_runtime.execution.session
from dyce_runtime import Configuration, Session, load, open_bundle
from dyce_runtime.bundle.configuration import Configurations, Entry, ExitSetting, Figures
from dyce_runtime.bundle.manifest import FINAL, UNCUT, Manifest
from dyce_runtime.control.governor import LatencyGovernor
from dyce_runtime.control.work_cap import WorkCap, capped, usual_heads
from dyce_runtime.errors import ConfigurationError, PieceError, UsageError
from dyce_runtime.execution.plan import LeaveAt, Plan, make_plan, pieces_of
from dyce_runtime.targets import registry
from tests.bundles import HEAD, NAMED, Spy, all_heads, expected, finish, make_images, on
from tests.manifests import chain, seen

# Nobody leaves early with these, which is what an attacker aims at.
NEVER = Configuration("never", on(exit3=1.0, exit7=1.0))
# What it costs to leave tests.bundles' model at 3 and 7, with the heads there on; and all of it.
AT_3, AT_7, WHOLE = (192 + 20) / 724, (192 + 256 + 2 * 20) / 724, (724 + 2 * 20) / 724


@pytest.fixture(scope="module")
def session(tiny_bundle: Path) -> Iterator[Session]:
    """A session on ``tiny_bundle`` whose device is a spy; whoever uses it turns the knob first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "find", lambda name=None: Spy())
        session = load(tiny_bundle, threads=1)
    with session:
        yield session


class Watch:
    """Seconds that pass when a test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def work(session: Session, images: np.ndarray) -> float:
    """What a call does, in inferences of the full model, by the pieces that the session's spy sees."""
    session.device.calls.clear()
    session(images)
    return (
        sum(session.manifest.piece(id).macs * rows for id, rows in session.device.calls) / session.manifest.model.macs
    )


# --- capped plans ----------------------------------------------------------------------------------------------------


@st.composite
def bundles(draw: st.DrawFn) -> tuple[Manifest, Configuration]:
    """A model with up to six segments, some spans and up to three heads per exit, and some setting of them."""
    segments = draw(st.integers(1, 6))
    macs = draw(st.lists(st.integers(1, 50), min_size=segments, max_size=segments))
    possible = [(first, last) for first in range(segments) for last in range(first + 1, segments)]
    spans = draw(st.lists(st.sampled_from(possible), unique=True)) if possible else []
    of_exit = st.dictionaries(st.sampled_from("abc"), st.integers(0, 30), min_size=1)
    heads = draw(st.lists(of_exit, min_size=segments - 1, max_size=segments - 1))
    enabled = {
        str(k): ExitSetting(draw(st.sampled_from(sorted(types))), draw(st.floats(0, 1, width=32)))
        for k, types in enumerate(heads)
        if draw(st.booleans())
    }
    return chain(macs, heads, spans), Configuration("drawn", enabled)


@pytest.fixture(scope="module")
def tiny(tiny_bundle: Path) -> Manifest:
    return open_bundle(tiny_bundle).manifest


def cost(manifest: Manifest, plan: Plan) -> float:
    """Of a sample that runs all of it."""
    return sum(manifest.piece(id).macs for id in pieces_of([plan])) / manifest.model.macs


def ways_out(manifest: Manifest, configuration: Configuration) -> list[float]:
    """What leaving costs at every exit, by adding up one piece after the other."""
    found, paid = [], 0
    for k, exit in enumerate(manifest.exits):
        paid += manifest.piece(f"segment_{k}").macs
        heads = {head.type: manifest.piece(head.piece).macs for head in exit.heads if exit.id != FINAL}
        if exit.id in configuration.exits:
            paid += heads[configuration.exits[exit.id].head]
            found.append(paid)
        else:
            found.append(paid + min(heads.values(), default=0))
    return [paid / manifest.model.macs for paid in found]


@given(bundles(), st.floats(0.01, 2))
def test_a_capped_plan_ends_at_the_deepest_exit_within_the_cap(case, max_share):
    manifest, configuration = case
    plan = make_plan(manifest, configuration, min_exited_to_compact={exit.id: 3 for exit in manifest.exits})
    costs = ways_out(manifest, configuration)
    if min(costs) > max_share:
        with pytest.raises(ConfigurationError, match=f"costs {min(costs):.3f}"):
            capped(manifest, plan, max_share)
        return
    deepest = max(k for k, paid in enumerate(costs) if paid <= max_share)
    made = capped(manifest, plan, max_share)
    assert made.leaves[-1].exit == deepest
    assert cost(manifest, made) == pytest.approx(costs[deepest])
    assert made.configuration is configuration
    if deepest == len(costs) - 1:
        assert made is plan
        return
    *before, end = made.leaves
    assert end.threshold == -np.inf
    assert end.threshold.dtype == np.float32
    assert end.piece.startswith("head")
    until_there = [leave for leave in plan.leaves if leave.exit < deepest]
    assert list(map(facts, before)) == list(map(facts, until_there)), "until there it is the same plan"


def facts(leave: LeaveAt) -> tuple[object, ...]:
    return leave.piece, leave.threshold, leave.exit, leave.live, leave.min_exited_to_compact


@given(bundles(), st.floats(0.01, 2))
def test_a_capped_plan_runs_every_segment_up_to_its_end_once_and_only_what_is_open(case, max_share):
    manifest, configuration = case
    if min(ways_out(manifest, configuration)) > max_share:
        return
    available = {piece.id for piece in manifest.pieces if piece.role != "span"}
    made = capped(manifest, make_plan(manifest, configuration, available), max_share, available)
    assert [id for stretch in seen(made, manifest) for id in stretch.body] == [
        f"segment_{k}" for k in range(made.leaves[-1].exit + 1)
    ]


def test_a_span_runs_where_it_fits(tiny: Manifest):
    made = capped(tiny, make_plan(tiny, Configuration("full")), 0.7)
    assert [stretch[:2] for stretch in seen(made, tiny)] == [(("span_00_01",), "exit_07_linear")]


def test_the_least_possible_share_is_named(tiny: Manifest):
    with pytest.raises(ConfigurationError, match=r"within 0\.2 .* 'never'; leaving at exit 3 costs 0\.293") as caught:
        capped(tiny, make_plan(tiny, NEVER), 0.2)
    assert "Raise max_share" in caught.value.hint


def test_a_plan_keeps_the_budget_that_it_was_chosen_for(tiny: Manifest):
    plan = msgspec.structs.replace(make_plan(tiny, NEVER), budget=0.5)
    assert capped(tiny, plan, 0.6).budget == 0.5


def test_an_exit_that_is_off_gets_the_head_that_most_configurations_use(tiny_bundle: Path):
    manifest = chain([100, 100], [{"s": 5, "l": 50, "u": 1}])
    exit = manifest.exits[0]
    heads = tuple(msgspec.structs.replace(head, trained=head.type != "u") for head in exit.heads)
    manifest = msgspec.structs.replace(
        manifest, exits=(msgspec.structs.replace(exit, heads=heads), *manifest.exits[1:])
    )
    full = make_plan(manifest, Configuration("full"))
    assert capped(manifest, full, 0.8).leaves[-1].piece == "head_s_0", "the cheapest that is trained"

    bundle = open_bundle(tiny_bundle)
    bundle.configurations = Configurations(
        named={"one": Entry({"0": ExitSetting("s", 0.5)}), "two": Entry({"0": ExitSetting("l", 0.5)})},
        front=(Entry({"0": ExitSetting("l", 0.9), "7": ExitSetting(HEAD, 0.5)}),),
    )
    assert usual_heads(bundle) == {"0": "l", "7": HEAD}
    assert capped(manifest, full, 0.8, heads=usual_heads(bundle)).leaves[-1].piece == "head_l_0"


# --- work per input --------------------------------------------------------------------------------------------------

thresholds = st.floats(0.125, 1, width=32)
configurations = st.fixed_dictionaries({}, optional={"exit3": thresholds, "exit7": thresholds}).map(
    lambda exits: Configuration("drawn", on(**exits))
)
batches = st.builds(make_images, st.integers(1, 9), st.integers(0, 2**32 - 1))


@given(batches, configurations, st.floats(0.3, 1.2))
def test_every_input_leaves_where_it_would_or_at_the_cap(session: Session, images, configuration, max_share):
    session.use(configuration)
    free = session(images)
    with WorkCap(session, max_share):
        assert work(session, images) <= max_share * len(images) * (1 + 1e-9)
        result = session(images)
        end = session.cap(session.plan(configuration), 1).leaves[-1].exit
    assert result.configuration is configuration
    np.testing.assert_array_equal(result.exit, np.minimum(free.exit, end))
    logits, confidences = all_heads(images)
    rows = np.arange(len(images))
    np.testing.assert_array_equal(result.logits, logits[rows, result.exit])
    np.testing.assert_array_equal(result.label, logits[rows, result.exit].argmax(axis=1))
    np.testing.assert_allclose(result.confidence, confidences[rows, result.exit], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("max_share", "does"), [(0.3, AT_3), (0.67, AT_3), (0.68, AT_7), (1.0, AT_7), (1.06, WHOLE), (math.inf, WHOLE)]
)
@pytest.mark.parametrize("count", [1, 7])
def test_inputs_that_never_leave_early_cost_what_the_cap_allows(session: Session, count, max_share, does):
    session.use(NEVER)
    with WorkCap(session, max_share):
        assert work(session, make_images(count)) == pytest.approx(count * does)


def test_the_cap_follows_the_knob(session: Session):
    images = make_images(20)
    with WorkCap(session, 0.7):
        for name in [*NAMED, *NAMED]:
            session.use(name)
            result, answer = session(images), expected(images, session.configuration)
            assert result.configuration is session.configuration
            assert result.configuration.name == name
            np.testing.assert_array_equal(result.exit, np.minimum(answer.exit, 1))


def test_capped_plans_are_made_once_and_not_kept_for_ever(session: Session):
    with WorkCap(session, 0.7) as cap:
        plan = session.plan("full")
        assert session.cap(plan, 1) is session.cap(plan, 5)
        for n in range(1000):
            made = session.cap(session.plan(Configuration(f"own {n % 7}", on(exit3=0.5))), 1)
            assert made.configuration.name == f"own {n % 7}"
        assert len(cap._known) <= 100


def test_a_configuration_is_told_from_another_of_the_same_name(session: Session):
    with WorkCap(session, 0.7):
        for exits, step in ((on(exit3=0.5, exit7=0.5), 2), (on(exit7=0.5), 1)):
            session.use(Configuration("mine", exits))
            assert len(session.cap(session.plan(session.configuration), 1).leaves) == step
            session(make_images(3))


@pytest.mark.parametrize("count", [1, 3])
def test_scores_that_are_not_numbers_do_not_hold_an_input_up(bundle_copy: Path, count):
    head = bundle_copy / "heads/exit_03_linear.onnx"
    model = onnx.load(head)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "linear0")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(np.nan), weight.name))
    onnx.save(model, head)
    finish(bundle_copy)
    with load(bundle_copy, threads=1) as session, WorkCap(session, 0.6):
        session.use(NEVER)
        with pytest.raises(PieceError, match="exit_03_linear gave scores for sample 0 that are not numbers"):
            session(make_images(count))


# --- work per second -------------------------------------------------------------------------------------------------

arrivals = st.lists(st.tuples(st.sampled_from([0.0, 0.001, 0.03, 0.5, 3.0]), st.integers(1, 8)), max_size=40)


@given(arrivals, st.floats(0.1, 40), st.floats(0.3, 1.1), st.sampled_from([NEVER, Configuration("full")]))
def test_work_per_second_is_bounded_whatever_the_inputs(session: Session, arrivals, limit, share, setting):
    session.use(setting)
    least = AT_3  # the least that an answer costs; with 'full' the head there is used too
    watch, done = Watch(), []
    with WorkCap(session, share, limit, clock=watch):
        for pause, count in arrivals:
            watch.now += pause
            spent = work(session, make_images(count))
            assert spent <= count * share * (1 + 1e-9)
            done.append((watch.now, spent if spent > count * least * (1 + 1e-9) else 0.0))
    at_once = max(limit, min(share, 1))
    for k, (start, _) in enumerate(done):
        total = 0.0
        for now, spent in done[k:]:
            total += spent
            assert total <= (at_once + limit * (now - start)) * (1 + 1e-9)


def test_inputs_that_keep_within_the_limit_are_left_alone(session: Session):
    session.use(NEVER)
    watch = Watch()
    with WorkCap(session, 0.7, 10, clock=watch):
        for _ in range(100):
            watch.now += AT_7 / 9.9
            assert work(session, make_images(1)) == pytest.approx(AT_7)


def test_when_nothing_is_left_inputs_leave_at_the_cheapest_exit_until_it_refills(session: Session):
    session.use(NEVER)
    watch = Watch()
    with WorkCap(session, 0.7, 4, clock=watch):
        flood = [work(session, make_images(1)) for _ in range(1000)]
        assert flood[:4] == pytest.approx([AT_7] * 4)
        assert flood[10:] == pytest.approx([AT_3] * 990)
        watch.now += 2.01
        assert [work(session, make_images(1)) for _ in range(4)] == pytest.approx([AT_7] * 4)


def test_a_rare_input_may_use_its_share_however_low_the_limit_per_second(session: Session):
    session.use(NEVER)
    watch = Watch()
    with WorkCap(session, 0.7, 0.1, clock=watch):
        for _ in range(5):
            assert work(session, make_images(1)) == pytest.approx(AT_7)
            watch.now += 7


def test_inputs_that_leave_early_cost_only_what_they_do(session: Session):
    session.use(Configuration("early", on(exit3=0.0, exit7=0.0)))
    watch = Watch()
    with WorkCap(session, 0.7, 10, clock=watch):
        for _ in range(30):
            session(make_images(1))
        session.use(NEVER)
        # 10 - 30 * 0.293 = 1.22 are left, then 0.54.
        assert [work(session, make_images(1)) for _ in range(3)] == pytest.approx([AT_7, AT_3, AT_3])


def test_work_that_was_done_at_the_same_time_is_paid_for_later(session: Session):
    session.use(NEVER)
    watch, device = Watch(), session.device

    def meanwhile(piece: str) -> None:
        device.before = lambda piece: None
        session(make_images(2))

    with WorkCap(session, 0.7, 2, clock=watch):
        device.before = meanwhile
        assert work(session, make_images(2)) == pytest.approx(4 * AT_7)
        # 2 - 4 * 0.674 + 2 * 0.345 = -0.01 are left, and after that enough.
        watch.now += 0.345
        assert work(session, make_images(1)) == pytest.approx(AT_3)
        watch.now += 0.6
        assert work(session, make_images(1)) == pytest.approx(AT_7)


# --- taking it off ---------------------------------------------------------------------------------------------------


def test_a_cap_ends_when_it_is_closed(session: Session):
    session.use(NEVER)
    with WorkCap(session, 0.6, 5) as first, pytest.raises(ConfigurationError, match="capped already"):
        WorkCap(session, 0.9)
    assert work(session, make_images(2)) == pytest.approx(2 * WHOLE)
    with WorkCap(session, 0.6):
        first.close()
        assert work(session, make_images(2)) == pytest.approx(2 * AT_3)


@pytest.mark.parametrize("max_per_second", [None, 5])
def test_calls_are_timed_only_where_work_is_charged(session: Session, monkeypatch: pytest.MonkeyPatch, max_per_second):
    readings = []
    clock = SimpleNamespace(perf_counter=lambda: readings.append(1) or 0.0)
    monkeypatch.setattr(dyce_runtime.execution.session, "time", clock)
    with WorkCap(session, 0.6, max_per_second):
        session(make_images(1))
    assert bool(readings) == (max_per_second is not None)
    readings.clear()
    session(make_images(1))
    assert not readings


def test_a_call_that_ends_after_it_was_closed_is_answered(session: Session):
    session.use(NEVER)
    cap = WorkCap(session, 0.6, 5)
    session.device.before = lambda piece: cap.close()
    try:
        np.testing.assert_array_equal(session(make_images(2)).exit, 0)
    finally:
        session.device.before = lambda piece: None
    np.testing.assert_array_equal(session(make_images(2)).exit, 2)


@pytest.mark.parametrize(
    ("max_share", "max_per_second"),
    [(0, None), (-1, None), (math.nan, None), (0.6, 0), (0.6, math.inf), (0.6, math.nan)],
)
def test_numbers_that_make_no_sense_are_refused(session: Session, max_share, max_per_second):
    with pytest.raises(UsageError, match="expected a"):
        WorkCap(session, max_share, max_per_second)
    assert session.cap is None


def test_a_cap_that_no_exit_meets_is_refused_at_once(session: Session):
    session.use("full")
    with pytest.raises(ConfigurationError, match=r"within 0\.25 .*; leaving at exit 3 costs 0\.293"):
        WorkCap(session, 0.25)
    assert session.cap is None


def test_untrained_heads_cap_nothing_unless_allowed(untrained_bundle: Path):
    with load(untrained_bundle) as session, pytest.raises(ConfigurationError, match="never trained"):
        WorkCap(session, 0.6)
    with load(untrained_bundle, allow_untrained=True) as session, WorkCap(session, 0.6):
        np.testing.assert_array_equal(session(make_images(3)).exit, 0)


def test_without_memory_for_spans_segments_run(tiny_bundle: Path, session: Session, spy: Spy):
    bundle = session.bundle
    least = sum(bundle.memory(piece.id) for piece in session.manifest.pieces if piece.role != "span")
    with load(tiny_bundle, threads=1, max_memory=least) as small, WorkCap(small, 0.7):
        assert UNCUT not in small.pieces
        small.use("full")
        assert work(small, make_images(2)) == pytest.approx(2 * (192 + 256 + 20) / 724)


# --- together --------------------------------------------------------------------------------------------------------


def test_it_caps_what_a_governor_chooses(session: Session):
    costs = {"fast": 0.3, "balanced": 0.5, "full": 1.0}
    before = session.bundle.configurations
    session.bundle.configurations = Configurations(
        named={name: Entry(NAMED[name], search=Figures(cost, 0, cost, 1, ())) for name, cost in costs.items()}
    )
    try:
        with LatencyGovernor(session, 1e-6) as governor, WorkCap(session, 0.7, 1000):
            answered = [session(make_images(1, seed)) for seed in range(50)]
            assert {result.configuration.name for result in answered} >= {"full", "fast"}
            assert max(result.exit[0] for result in answered) == 1
            assert governor.state["calls"] > 0, "the governor knows whose results these are"
    finally:
        session.bundle.configurations = before


def test_several_threads_may_call_a_capped_session(tiny_bundle: Path):
    calls = [make_images(3, seed) for seed in range(200)]
    with load(tiny_bundle, threads=1) as session, WorkCap(session, 0.7, 50), ThreadPoolExecutor(4) as pool:
        session.use("fast")
        for images, result in zip(calls, pool.map(session, calls), strict=True):
            logits, _ = all_heads(images)
            np.testing.assert_array_equal(result.logits, logits[np.arange(3), result.exit])
            assert result.exit.max() <= 1
