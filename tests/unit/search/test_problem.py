from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dyce_calibration.records import Records
from dyce_calibration.search.costs import CostTable
from dyce_calibration.search.problem import ExitChoice, make_problem
from dyce_calibration.search.run import Search, run
from dyce_calibration.search.subproblems import subproblems
from dyce_runtime.bundle.configuration import ExitSetting, Figures
from dyce_runtime.errors import DataError
from tests.unit.test_records import HEADS, make_records

# Measured in time the uncut model is cheaper than the chain of its segments.
COSTS = CostTable(
    "ms",
    {"2": 30.0, "5": 60.0, "final": 104.0},
    {"2": {"mlp1x1000": 1.0}, "5": {"mlp1x1000": 2.0, "mlp2x64": 5.0}},
    100.0,
)


def evaluate(records: Records, costs: CostTable, exits: dict[str, ExitSetting]) -> Figures:
    problem = make_problem(records, costs)
    return problem.evaluate(problem.setting(exits))


thresholds = st.integers(0, 16).map(lambda n: n / 16)  # on the confidences and between them
settings = st.fixed_dictionaries(
    {},
    optional={
        "2": st.builds(ExitSetting, st.just("mlp1x1000"), thresholds),
        "5": st.builds(ExitSetting, st.sampled_from(["mlp1x1000", "mlp2x64"]), thresholds),
    },
)


def one_by_one(records: Records, exits: dict[str, ExitSetting]) -> tuple[float, float, list[float]]:
    """Accuracy, relative cost and exit shares, sample after sample."""
    right, paid, left = 0.0, 0.0, dict.fromkeys(COSTS.backbone, 0)
    skipping = bool((records.cost < 1).any())
    for row in range(len(records)):
        heads = 0.0
        for exit in ("2", "5", "final"):
            if exit in exits:
                heads += COSTS.heads[exit][exits[exit].head]
                column = HEADS.index((exit, exits[exit].head))
                if not records.scores[row, column] > np.float32(exits[exit].threshold):
                    continue
            elif exit == "final":
                column = len(HEADS)
            else:
                continue
            right += 1 - float(records.loss[row, column])
            paid += COSTS.backbone[exit] * float(records.cost[row, column]) + heads if exits or skipping else 100
            left[exit] += 1
            break
    count = len(records)
    return right / count, paid / count / COSTS.full, [n / count for n in left.values()]


def with_gates(records: Records, seed: int) -> Records:
    """Any losses, and every sample pays its own share of the backbone up to each exit."""
    random = np.random.default_rng(seed)
    share = random.random((len(records), 3), np.float32)[:, [0, 1, 1, 2]]  # heads of one exit share what was paid
    return replace(records, loss=random.random(records.loss.shape, np.float32), cost=share)


@given(settings, st.integers(1, 40), st.integers(0, 1000), st.booleans())
def test_a_configuration_is_evaluated_as_sample_after_sample(exits, count, seed, gates):
    records = make_records(count, seed)
    records = with_gates(records, seed) if gates else records
    found = evaluate(records, COSTS, exits)
    accuracy, cost, shares = one_by_one(records, exits)
    assert found.accuracy == pytest.approx(accuracy, abs=1e-6)
    assert found.cost == pytest.approx(cost, abs=1e-6)
    assert found.share_per_exit == pytest.approx(shares, abs=1e-12)
    assert found.loss == pytest.approx(records.accuracy() - accuracy, abs=1e-6)
    assert found.samples == count


def test_a_search_of_any_losses_finds_what_its_settings_do():
    problem = make_problem(with_gates(make_records(300), 0), COSTS)
    assert problem.steps == 100
    found = run(problem, problem, Search(weights=30))
    for setting, cost, accuracy in zip(found.settings, found.cost, found.accuracy, strict=True):
        figures = problem.evaluate(setting)
        assert figures.cost == pytest.approx(cost, abs=1e-9)
        assert figures.accuracy == pytest.approx(accuracy, abs=0.005), "a loss counts in hundredths"
    np.testing.assert_allclose((found.cost, found.accuracy), (found.test_cost, found.test_accuracy), atol=1e-12)


def test_losses_of_very_many_samples_are_counted_in_coarser_steps():
    records = make_records(40_000)
    fractions = replace(records, loss=np.full_like(records.loss, 0.3))
    assert make_problem(fractions, COSTS).steps == (1 << 19) // 40_000
    assert make_problem(records, COSTS).steps == 1


def test_records_of_several_variants_are_refused():
    records = make_records(4)
    with pytest.raises(DataError, match="hold the variants '', 'half'; expected those of one"):
        make_problem(replace(records, variant=np.array(["", "half"] * 2)), COSTS)


def test_the_full_model_costs_one_and_loses_nothing():
    found = evaluate(make_records(), COSTS, {})
    assert (found.cost, found.loss, found.share_per_exit) == (1.0, 0.0, (0.0, 0.0, 1.0))


def test_a_confidence_at_the_threshold_stays():
    records = make_records(1)
    at = float(records.scores[0, 0])
    exits = {"2": ExitSetting("mlp1x1000", at)}
    assert evaluate(records, COSTS, exits).share_per_exit == (0.0, 0.0, 1.0)
    below = float(np.nextafter(np.float32(at), np.float32(-1)))
    assert evaluate(records, COSTS, {"2": ExitSetting("mlp1x1000", below)}).share_per_exit == (1.0, 0.0, 0.0)


@given(settings, st.integers(1, 40), st.integers(0, 1000))
def test_outcomes_are_what_the_accuracy_counts(exits, count, seed):
    problem = make_problem(make_records(count, seed), COSTS)
    setting = problem.setting(exits)
    assert 1 - problem.losses(setting).mean() == pytest.approx(problem.evaluate(setting).accuracy)
    assert problem.exits(setting) == exits


def test_a_head_that_was_not_recorded_is_refused():
    problem = make_problem(make_records(), COSTS)
    with pytest.raises(KeyError):
        problem.setting({"2": ExitSetting("mlp2x64", 0.5)})


def test_a_recorded_head_without_a_cost_is_refused():
    costs = CostTable("ms", COSTS.backbone, {"2": {"mlp1x1000": 1.0}}, 100.0)
    with pytest.raises(DataError, match="no cost for head mlp1x1000 at exit 5"):
        make_problem(make_records(), costs)


def test_an_exit_without_heads_takes_no_samples():
    records = make_records()
    figures = evaluate(records.with_columns([0]), COSTS, {"2": ExitSetting("mlp1x1000", 0.5)})
    assert len(figures.share_per_exit) == 3
    assert figures.share_per_exit[1] == 0


def test_no_samples_are_refused():
    with pytest.raises(DataError, match="no records"):
        make_problem(make_records().of_split("nowhere"), COSTS)


# --- spans -----------------------------------------------------------------------------------------------------------

EXITS = ("1", "2", "3", "4")
HEAD_COST = 3.0
SPANS = {"image": {"2": 17.0, "3": 26.0}, "2": {"4": 18.0, "final": 25.0}, "3": {"final": 19.0}}


def spanned_problem(seed: int = 0, samples: int = 200):
    """Four exits whose segments cost 10 each; spans save a little."""
    random = np.random.default_rng(seed)
    heads = tuple((exit, "h") for exit in EXITS)
    labels = random.integers(0, 3, samples)
    right = random.random((samples, 5)) < np.linspace(0.2, 0.9, 5)
    predictions = np.where(right, labels[:, None], (labels[:, None] + 1) % 3)
    confidences = random.random((samples, 5)).astype(np.float32) * 0.5 + right * 0.4
    records = Records.of_single_label(
        heads, predictions, confidences.astype(np.float32), labels, np.arange(samples).astype(str),
        np.full(samples, "search"),
    )  # fmt: skip
    backbone = {exit: 10.0 * n for n, exit in enumerate((*EXITS, "final"), 1)}
    table = CostTable("ms", backbone, {exit: {"h": HEAD_COST} for exit in EXITS}, 45.0, spans=SPANS).check()
    return make_problem(records, table)


@pytest.mark.parametrize(
    ("on", "paid"),
    [
        ((), [1, 1, 1, 1, 1]),
        (("1",), [13, None, None, None, 13 + 10 + 25]),
        (("2",), [None, 20, None, None, 20 + 25]),
        (("3",), [None, None, 29, None, 29 + 19]),
        (("2", "4"), [None, 20, None, 41, 41 + 10]),
        (("1", "2", "3"), [13, 26, 39, None, 39 + 19]),
    ],
)
def test_a_setting_pays_for_the_spans_that_it_runs(on, paid):
    problem = spanned_problem()
    found = problem.costs(problem.setting({exit: ExitSetting("h", 0.5) for exit in on}))
    for mine, expected in zip(found, paid, strict=True):
        if expected is not None:
            assert mine == pytest.approx(expected / 45 if on else 1)


def test_along_every_chain_costs_add_up_to_what_is_paid():
    problem = spanned_problem()
    chains = subproblems(problem)
    kept = [tuple(k for k, _ in chain.kept) for chain in chains]
    assert kept[:2] == [(0, 1, 2, 3), (1,)]
    assert len({*kept}) == len(chains) == 8
    for chain in chains:
        setting = tuple(ExitChoice(0, 0.7) for _ in chain.kept)
        whole = problem.costs(chain.whole(setting))
        expected = [whole[k] for k in (*(k for k, _ in chain.kept), 4)]
        np.testing.assert_allclose(chain.problem.costs(setting), expected)


def test_a_search_finds_what_spans_make_cheaper():
    problem = spanned_problem()
    with_spans = run(problem, None, Search(weights=50))
    without = run(replace(problem, spans=()), None, Search(weights=50))
    for setting, cost, accuracy in zip(with_spans.settings, with_spans.cost, with_spans.accuracy, strict=True):
        figures = problem.evaluate(setting)
        assert (figures.cost, figures.accuracy) == pytest.approx((cost, accuracy))
    for setting, accuracy in zip(without.settings, without.accuracy, strict=True):
        assert with_spans.cost[with_spans.accuracy >= accuracy - 1e-12].min() <= problem.evaluate(setting).cost + 1e-12
    assert hypervolume(with_spans) > hypervolume(without) + 0.005


def hypervolume(outcome) -> float:
    """Between cost 0 and 1 and accuracy 0 and 1."""
    return float(np.sum(outcome.accuracy * np.diff([*outcome.cost, 1.0])))
