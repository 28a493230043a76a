import builders
from galvatron_planner.cost.prices import PriceList
from galvatron_planner.cost.step import BatchSplit, price_step
from galvatron_planner.problem import PlanningProblem
from galvatron_planner.search.joint import Candidate
from galvatron_planner.search.tidying import tidied
from galvatron_planner.strategy import LayerStrategy


def candidate(problem: PlanningProblem, *stages: str) -> Candidate:
    split = BatchSplit(8, 2)
    strategies = tuple(tuple(LayerStrategy.parse(text) for text in stage.split()) for stage in stages)
    return Candidate(split, strategies, price_step(PriceList.of(problem), problem, strategies, split))


def texts(found: Candidate) -> list[str]:
    return [" ".join(str(strategy) for strategy in stage) for stage in found.stages]


def test_equal_strategies_of_equal_blocks_come_together() -> None:
    problem = builders.problem(builders.model(num_layers=6))
    mixed = candidate(problem, "dp2 dp2 dp2-ckpt dp2", "dp2-ckpt dp2 dp2-ckpt dp2")
    grouped = tidied(problem, PriceList.of(problem), mixed)
    assert texts(grouped) == ["dp2 dp2 dp2 dp2-ckpt", "dp2-ckpt dp2-ckpt dp2 dp2"]
    assert grouped.estimate.step_seconds <= mixed.estimate.step_seconds * (1 + 1e-12)


def test_what_would_need_more_memory_than_there_is_stays_as_it_was() -> None:
    # A neighbour's gathered parameters count beside a layer's working memory: the order can matter.
    problem = builders.problem(builders.model(num_layers=4))
    mixed = candidate(problem, "dp4 fsdp4 dp4-ckpt fsdp4 dp4-ckpt dp4")
    exact = problem.cluster.model_copy(update={"device_memory_bytes": mixed.estimate.peak_bytes})
    tight = problem.model_copy(update={"cluster": exact})
    found = tidied(tight, PriceList.of(tight), candidate(tight, "dp4 fsdp4 dp4-ckpt fsdp4 dp4-ckpt dp4"))
    assert found.estimate.peak_bytes <= exact.device_memory_bytes
