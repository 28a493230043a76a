from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as generate

import builders
import generators
from galvatron_planner import families, space
from galvatron_planner.cost.prices import PriceList, StageCost, StagePosition
from galvatron_planner.problem import PlanningProblem, SearchLimits
from galvatron_planner.search.bound import BoundTable
from galvatron_planner.search.contents import Contents
from galvatron_planner.search.front import Labels, undominated
from galvatron_planner.search.graph import StageGraph, StageTask
from galvatron_planner.search.options import PipelineOptions
from galvatron_planner.search.stage import StageSearch
from galvatron_planner.strategy import LayerStrategy, Layout

SLOW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])

WEIGHTS = (3.0, 3.0, 1.0, 1.0)
"""A step of three micro-batches."""


class Instance:
    """Some layers of a small model on one stage, with everything that a search and its oracle need."""

    def __init__(self, problem: PlanningProblem, *, first: int, micro_batch_size: int, task: StageTask) -> None:
        self.prices = PriceList.of(problem)
        self.task = task
        self.micro_batch_size = micro_batch_size
        layers = families.layers(problem.model)
        self.layers = layers[first : first + 3]
        candidates = {
            layer: space.strategies(problem.cluster.num_devices, problem.limits, layer).strategies for layer in layers
        }
        self.options = PipelineOptions.of(self.prices, layers, candidates, micro_batch_size=micro_batch_size)
        self.kinds = self.options.kinds[first : first + 3]
        self.candidates = candidates
        if first == 0:
            self.task = replace(task, entry=None)
        elif task.entry not in (None, *self.options.exits):
            # Another layout does the same: the search left this one out.
            self.task = replace(task, entry=self.options.exits[0])
        self.contents = Contents(self.options.kinds)
        self.content = self.contents.table[first, [3]]

    @property
    def graph(self) -> StageGraph:
        return StageGraph(self.options, self.task)

    def search(self) -> StageSearch:
        return StageSearch(self.graph)

    def bounds(self, *, exact_caps: bool = False) -> BoundTable:
        return BoundTable([[self.graph]], self.contents, np.arange(len(self.options.exits)), exact_caps=exact_caps)

    def everything(self) -> Iterator[tuple[tuple[LayerStrategy, ...], StageCost]]:
        position = StagePosition(
            micro_batch_size=self.micro_batch_size,
            in_flight=self.task.in_flight,
            holds_all=self.task.holds_all,
            entry=self.task.entry,
            feeds_next=self.task.feeds_next,
        )
        fitting = [
            [s for s in self.candidates[layer] if self.micro_batch_size % s.data_degree == 0] for layer in self.layers
        ]
        for strategies in product(*fitting):
            yield strategies, self.prices.stage(self.layers, strategies, position)


def seconds(cost: StageCost) -> float:
    return 3 * (cost.forward_seconds + cost.backward_seconds) + cost.sync_seconds + cost.optimizer_seconds


@generate.composite
def instances(draw: generate.DrawFn) -> Instance:
    problem = draw(generators.problems(max_devices=4, limits=SearchLimits()))
    micro_batch_size = draw(generate.sampled_from([2, 4]))
    layouts = sorted({LayerStrategy.parse(t).layout for t in _entries(problem.cluster.num_devices)})
    if micro_batch_size < problem.cluster.num_devices:
        layouts = [layout for layout in layouts if layout.data_degree <= micro_batch_size]
    feeds_next = draw(generate.booleans())
    task = StageTask(
        weights=WEIGHTS,
        in_flight=draw(generate.integers(1, 3)),
        holds_all=draw(generate.booleans()),
        budget_bytes=problem.cluster.device_memory_bytes,
        entry=draw(generate.sampled_from([None, *layouts])),
        feeds_next=feeds_next,
    )
    first = draw(generate.integers(0, max(0, problem.model.num_layers - 1)))
    return Instance(problem, first=first, micro_batch_size=micro_batch_size, task=task)


def _entries(num_devices: int) -> list[str]:
    return {1: ["single"], 2: ["dp2", "tp2"], 4: ["dp4", "tp2-dp2", "dp2-tp2"]}[num_devices]


def _fastest(instance: Instance, exit_layout: Layout | None) -> float | None:
    fitting = [
        seconds(cost)
        for _, cost in instance.everything()
        if cost.peak_bytes <= instance.task.budget_bytes and exit_layout in (None, cost.exit_layout)
    ]
    return min(fitting, default=None)


@SLOW
@given(instances())
def test_the_stage_search_equals_exhaustive_enumeration(instance: Instance) -> None:
    search = instance.search()
    for exit_layout in instance.graph.exits:
        best, expected = search.best(instance.kinds, exit_layout), _fastest(instance, exit_layout)
        assert (best is None) == (expected is None)
        if best is not None:
            assert best.seconds == pytest.approx(expected, rel=1e-9)


@SLOW
@given(instances(), generate.integers(1, 4))
def test_what_a_layer_keeps_at_least_is_no_more_than_it_keeps_on_any_stage(instance: Instance, number: int) -> None:
    for layer in instance.options.layers:
        least = layer.least_kept(number)
        assert all((least <= layer.kept(held, holds_all=held == number)).all() for held in range(1, number + 1))


@SLOW
@given(instances())
def test_what_the_search_says_of_its_choice_is_what_the_cost_model_says(instance: Instance) -> None:
    costs = dict(instance.everything())
    search = instance.search()
    for exit_layout in instance.graph.exits:
        best = search.best(instance.kinds, exit_layout)
        if best is not None:
            cost = costs[best.strategies]
            assert best.peak_bytes == cost.peak_bytes <= instance.task.budget_bytes
            assert best.seconds == pytest.approx(seconds(cost), rel=1e-9)
            assert exit_layout in (None, cost.exit_layout)


@SLOW
@given(instances())
def test_no_choice_undercuts_the_lower_bound(instance: Instance) -> None:
    bounds = instance.bounds().seconds(instance.content)[0, 0, 0]
    for exit_layout, bound in zip(instance.graph.exits, bounds, strict=True):
        expected = _fastest(instance, exit_layout)
        if expected is not None:
            assert bound <= expected * (1 + 1e-9)


@SLOW
@given(instances())
def test_the_smallest_peak_is_the_smallest_of_all(instance: Instance) -> None:
    found = instance.bounds(exact_caps=True).peaks(instance.content)[0, 0]
    for exit_layout, peak in zip(instance.graph.exits, found, strict=True):
        peaks = [c.peak_bytes for _, c in instance.everything() if exit_layout in (None, c.exit_layout)]
        assert peak == min(peaks, default=float("inf"))


def test_a_front_keeps_what_nothing_matches() -> None:
    # Seconds and bytes kept of one state: the first matches the third; the fourth, below another cap, the second not.
    labels = _labels(seconds=[1.0, 2.0, 1.5, 2.0], kept=[10, 5, 10, 5], cap=[1, 1, 1, 0])
    kept = undominated(labels)
    assert sorted(zip(kept.seconds, kept.kept, kept.cap, strict=True)) == [(1.0, 10, 1), (2.0, 5, 0), (2.0, 5, 1)]


@given(
    generate.lists(
        generate.tuples(
            generate.integers(0, 4), generate.integers(0, 4), generate.integers(0, 2), generate.integers(0, 2)
        ),
        min_size=1,
    )
)
def test_every_label_is_matched_by_a_survivor(offered: list[tuple[int, int, int, int]]) -> None:
    times, kept, caps, states = zip(*offered, strict=True)
    labels = _labels(seconds=[float(t) for t in times], kept=list(kept), cap=list(caps), state=list(states))
    front = undominated(labels)
    survivors = list(zip(front.seconds, front.kept, front.cap, front.state, strict=True))
    for label in offered:
        matches = [
            s for s in survivors if s[2:] == label[2:] and all(a <= b for a, b in zip(s[:2], label[:2], strict=True))
        ]
        assert matches
    assert len(set(survivors)) == len(survivors)


def _labels(*, seconds: list[float], kept: list[int], cap: list[int], state: list[int] | None = None) -> Labels:
    index = np.arange(len(seconds))
    states = np.array(state) if state else np.zeros(len(seconds), dtype=np.int64)
    return Labels(np.array(seconds), np.array(kept), np.array(cap), states, index, index)


def test_a_stage_solved_by_hand() -> None:
    # One block on two devices. Whatever fits of dp2, fsdp2 and tp2: with room for replicated states dp2 wins, because
    # it communicates once a step only; with less it is sharded.
    spec = builders.model(num_layers=1)
    problem = builders.problem(spec, builders.cluster(2))
    task = StageTask(weights=WEIGHTS, in_flight=1, holds_all=True, budget_bytes=1 << 30, entry=None, feeds_next=False)
    roomy = Instance(problem, first=1, micro_batch_size=2, task=task)
    block = roomy.kinds[:1]
    best = roomy.search().best(block, None)
    assert best is not None
    assert [str(s) for s in best.strategies] == ["dp2"]
    tight = replace(task, budget_bytes=best.peak_bytes - 1)
    second = Instance(problem, first=1, micro_batch_size=2, task=tight).search().best(block, None)
    assert second is not None
    assert [str(s) for s in second.strategies] != ["dp2"]
    assert second.seconds > best.seconds
