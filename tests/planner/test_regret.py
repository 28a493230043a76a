"""Regret, rank correlation and errors of predictions, and the plans that are compared."""

import csv
import io
from xml.etree.ElementTree import fromstring

import pytest
from hypothesis import given
from hypothesis import strategies as generate
from scipy.stats import kendalltau

import builders
from galvatron_planner.plan import Plan
from galvatron_planner.problem import SearchDimension, SearchLimits
from galvatron_planner.regret import Errors, Trial, as_chart, as_csv, as_markdown, kendall_tau, regret
from galvatron_planner.search.optimizer import search
from galvatron_planner.search.rivals import rivals

SECONDS = generate.floats(0.01, 100)


def plan(step_seconds: float, *, batch: int = 8) -> Plan:
    made = builders.plan("dp4 dp4 dp4 dp4", global_batch_size=batch)
    estimate = made.estimate.model_copy(
        update={"step_seconds": step_seconds, "samples_per_second": batch / step_seconds, "stage_peak_bytes": (1000,)}
    )
    return made.model_copy(update={"estimate": estimate})


def trial(name: str, *seconds: float, predicted: float = 1.0, batch: int = 8, failure: str = "") -> Trial:
    return Trial(name, plan(predicted, batch=batch), seconds, (1000,) * len(seconds), failure)


def test_the_fastest_plan_is_not_regretted() -> None:
    found = regret([trial("chosen", 1.0, 1.1, 0.9), trial("other", 2.0, 2.1, 1.9)])
    assert (found.share, found.low, found.high) == (0, 0, 0)
    assert found.fastest.name == "chosen"


def test_regret_is_the_share_by_which_the_chosen_plan_is_slower() -> None:
    found = regret([trial("chosen", 1.2, 1.2, 1.2), trial("other", 1.0, 1.0, 1.0), trial("third", 3.0, 3.0, 3.0)])
    assert found.share == pytest.approx(0.2)
    assert (found.low, found.high) == pytest.approx((0.2, 0.2))
    assert found.fastest.name == "other"


def test_the_interval_is_as_wide_as_the_rounds_disagree() -> None:
    steady = regret([trial("chosen", *[1.1] * 5), trial("other", *[1.0] * 5)])
    noisy = regret([trial("chosen", 0.9, 1.0, 1.1, 1.2, 1.3), trial("other", 1.2, 1.1, 1.0, 0.9, 0.8)])
    assert steady.high - steady.low == pytest.approx(0)
    assert noisy.low == 0
    assert noisy.high > 0.2


def test_plans_of_other_batch_sizes_are_compared_by_sample() -> None:
    found = regret([trial("chosen", 1.0, batch=8), trial("large", 1.5, batch=16)])
    assert found.share == pytest.approx(1 / 0.75 - 1)


def test_what_failed_is_told_and_not_counted() -> None:
    trials = [trial("chosen", 1.0, 1.0), trial("broken", failure="OutOfMemory: no room")]
    found = regret(trials)
    assert found.rank_correlation is None
    assert "broken: " in as_markdown("title", trials, found)
    assert "OutOfMemory: no room" in as_markdown("title", trials, found)


def test_a_chosen_plan_that_failed_has_no_regret() -> None:
    with pytest.raises(ValueError, match="was not measured"):
        regret([trial("chosen", failure="no"), trial("other", 1.0)])


@given(generate.lists(generate.tuples(generate.integers(0, 5), generate.integers(0, 5)), min_size=2, max_size=12))
def test_rank_correlation_is_that_of_scipy(pairs: list[tuple[int, int]]) -> None:
    one, other = zip(*pairs, strict=True)
    expected = float(kendalltau(one, other).statistic)
    ours = kendall_tau(one, other)
    assert ours is None if expected != expected else ours == pytest.approx(expected)


@given(generate.lists(generate.tuples(SECONDS, SECONDS), min_size=2, max_size=6))
def test_regret_is_never_negative_and_its_interval_is_ordered(rounds: list[tuple[float, float]]) -> None:
    found = regret([trial(f"plan {index}", *seconds) for index, seconds in enumerate(rounds)])
    assert 0 <= found.low <= found.high
    assert found.share >= 0


def test_errors_are_shares_of_what_was_predicted() -> None:
    found = Errors.of([1.0, 0.9, 1.2])
    assert found.mean == pytest.approx(0.1)
    assert found.worst == pytest.approx(0.2)


def test_files_hold_every_round_and_every_plan() -> None:
    trials = [trial("chosen", 1.0, 1.2), trial("other", 2.0, 2.2, predicted=1.5)]
    lines = list(csv.DictReader(io.StringIO(as_csv(trials))))
    assert [float(line["measured_seconds"]) for line in lines] == [1.0, 1.2, 2.0, 2.2]
    drawing = fromstring(as_chart("title", trials))  # noqa: S314 -- our own
    assert {element.text for element in drawing.iter() if element.tag.endswith("title")} >= {
        "chosen: 1.1 against 1",
        "other: 2.1 against 1.5",
    }


def test_rivals_are_different_plans_that_fit_the_best_one_first() -> None:
    problem = builders.problem(builders.model(num_layers=4), builders.cluster(4), batch=8)
    found = rivals(problem, num_plans=20, seed=3)
    assert found[0].plan == search(problem).plan
    assert len({(one.plan.stages, one.plan.num_micro_batches) for one in found}) == len(found) == 20
    assert {"Optimal", "SDP", "ZERO2"} <= {one.name for one in found}
    assert sum(one.name.startswith("random") for one in found) > 5
    for one in found:
        assert one.plan.estimate.peak_bytes <= problem.cluster.device_memory_bytes
        assert one.plan.estimate.samples_per_second <= found[0].plan.estimate.samples_per_second * (1 + 1e-9)


def test_rivals_keep_to_the_limits_of_the_job_and_are_the_same_for_the_same_seed() -> None:
    limits = SearchLimits(excluded=(SearchDimension.TP, SearchDimension.CKPT))
    problem = builders.problem(builders.model(num_layers=4), builders.cluster(4), batch=8, limits=limits)
    found = rivals(problem, num_plans=15, seed=1)
    assert found == rivals(problem, num_plans=15, seed=1)
    strategies = [s for one in found for stage in one.plan.stages for s in stage.layers]
    assert all(s.tensor_degree == 1 and not s.checkpoint for s in strategies)
