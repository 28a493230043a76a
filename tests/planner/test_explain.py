import builders
from galvatron_planner.explain import baseline_rows, explain, runner_up_rows, stage_rows
from galvatron_planner.search.optimizer import search
from galvatron_planner.search.report import Solution
from galvatron_planner.units import MIB

SPEC = builders.model(hidden_size=256, num_layers=6, num_heads=8, sequence_length=128, vocabulary_size=256)


def solution(memory: int = 30 * MIB) -> Solution:
    return search(builders.problem(SPEC, builders.cluster(4, device_memory_bytes=memory), batch=8))


def test_stages_list_every_layer_once_and_every_rank() -> None:
    plan = builders.plan("dp2 tp2 tp2", "tp2-ckpt dp2", spec=builders.model(num_layers=3))
    rows = stage_rows(plan)
    assert [row.layers for row in rows] == ["embedding 0: dp2, block 1-2: tp2", "block 3: tp2-ckpt, head 4: dp2"]
    assert [row.ranks for row in rows] == ["0-1", "2-3"]


def test_the_text_names_what_does_not_fit_and_what_binds() -> None:
    found = solution()
    text = explain(found.plan, found.report)
    assert found.plan.summary in text
    assert "does not fit alone: DP" in text
    assert "memory binds" in text


def test_tables_have_a_row_for_every_baseline_and_runner_up() -> None:
    found = solution()
    assert len(baseline_rows(found.plan, found.report)) == len(found.report.baselines) == 8
    assert len(runner_up_rows(found.plan, found.report)) == len(found.report.runners_up)


def test_a_single_device_has_nothing_to_compare_with() -> None:
    found = search(builders.problem(SPEC, builders.cluster(1), batch=4))
    assert baseline_rows(found.plan, found.report) == ()
    assert "proven optimal" in explain(found.plan, found.report)
