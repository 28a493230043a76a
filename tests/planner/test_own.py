"""Layers of a user's own are searched, explained and drawn as ours are."""

import pytest
from pydantic import ValidationError

import builders
from galvatron_planner import families
from galvatron_planner.errors import InexpressiblePlan, NoFeasiblePlan
from galvatron_planner.explain import explain
from galvatron_planner.insight import insight
from galvatron_planner.interop.plans import to_galvatron
from galvatron_planner.own import OwnLayer, OwnModel, OwnParameter, data_of
from galvatron_planner.perfetto import chrome_trace
from galvatron_planner.plan import Plan
from galvatron_planner.problem import Algorithm, PlanningProblem, SearchLimits
from galvatron_planner.search.optimizer import search
from galvatron_planner.search.rivals import rivals
from galvatron_planner.timeline_html import timeline_html
from galvatron_planner.units import MIB

READS, LOSES = data_of(sequence_length=16, vocabulary_size=64, image_size=0)
FIRST = OwnLayer(
    function="mine:layers",
    index=0,
    digest="0" * 64,
    inputs=(),
    outputs=((16, 32), (8,)),
    data=READS,
    parameters=(OwnParameter(name="table.weight", shape=(64, 32)),),
    forward_flops=0,
    kept_elements=64,
)
MIDDLE = FIRST.model_copy(
    update={
        "index": 1,
        "digest": "1" * 64,
        "inputs": FIRST.outputs,
        "data": None,
        "parameters": (
            OwnParameter(name="weight", shape=(512, 32), split_dim=0),
            OwnParameter(name="bias", shape=(32,)),
        ),
        "forward_flops": 2 * 16 * 512 * 32,
        "kept_elements": 16 * 600,
        "entered": (16 * 32,),
        "left": (16 * 32,),
    }
)
LAST = MIDDLE.model_copy(
    update={"index": 5, "digest": "2" * 64, "outputs": (), "data": LOSES, "parameters": FIRST.parameters}
)
MODEL = OwnModel(layers=(FIRST, *(MIDDLE,) * 4, LAST), sequence_length=16, vocabulary_size=64)


def problem(algorithm: Algorithm = Algorithm.OPTIMAL, memory_bytes: int = 64 * MIB) -> PlanningProblem:
    asked = builders.problem(MODEL, limits=SearchLimits(algorithm=algorithm))
    cluster = asked.cluster.model_copy(update={"device_memory_bytes": memory_bytes})
    return asked.model_copy(update={"cluster": cluster})


@pytest.mark.parametrize("algorithm", [Algorithm.OPTIMAL, Algorithm.GALVATRON, Algorithm.GALVATRON_BMW])
def test_every_algorithm_finds_a_plan(algorithm: Algorithm) -> None:
    asked = problem(algorithm)
    found = search(asked)
    assert sum(len(stage.layers) for stage in found.plan.stages) == 6
    assert Plan.from_json(found.plan.to_json()) == found.plan
    assert len(rivals(asked, num_plans=6)) == 6


def test_a_plan_is_explained_and_drawn() -> None:
    found = search(problem())
    seen = insight(found.plan, builders.profile(MODEL, found.plan.cluster))
    assert "own" in explain(found.plan, found.report, seen)
    assert "<svg" in timeline_html(found.plan, seen.timeline)
    assert "traceEvents" in chrome_trace(found.plan, seen.timeline)


def test_too_little_memory_is_told_with_what_would_do() -> None:
    with pytest.raises(NoFeasiblePlan) as caught:
        search(problem(memory_bytes=100_000))
    assert "memory" in caught.value.remedy


def test_the_format_of_another_system_has_no_place_for_it() -> None:
    with pytest.raises(InexpressiblePlan, match="no Transformer blocks"):
        to_galvatron(search(problem()).plan)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((MIDDLE, LAST), "the first layer reads inputs"),
        ((FIRST, FIRST, LAST), "and no other any data"),
        ((FIRST, MIDDLE.model_copy(update={"outputs": ()}), LAST), "the last layer, and no other, hands nothing on"),
        ((FIRST, MIDDLE.model_copy(update={"inputs": ((1, 1),)}), LAST), "layer 0 hands on"),
    ],
)
def test_layers_that_do_not_fit_together_are_no_model(layers: tuple[OwnLayer, ...], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        OwnModel(layers=layers, sequence_length=16, vocabulary_size=64)


def test_equal_layers_are_one_layer_to_measure() -> None:
    assert len(set(families.layers(MODEL))) == 3
    assert families.copies(MODEL) == {}
