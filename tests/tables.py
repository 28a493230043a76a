"""The prices of one batch split and pipeline degree as plain arrays: what the oracles enumerate and formulate from.

Written from the cost model's statement (``cost/prices.py``, ``cost/step.py``), never from the search: a stage is a sum
over layers and over changes of layout between neighbours, its working memory a maximum. Tests hold it equal to
``price_step``.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
import numpy.typing as npt

from galvatron_planner import families, space
from galvatron_planner.cost.pipeline import in_flight
from galvatron_planner.cost.prices import PriceList, StagePosition
from galvatron_planner.cost.step import BatchSplit
from galvatron_planner.model import LayerSpec
from galvatron_planner.problem import BatchRange, PlanningProblem
from galvatron_planner.search.request import pipeline_degrees
from galvatron_planner.strategy import LayerStrategy, Layout

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


class Pass(Enum):
    """What a stage does with a micro-batch."""

    FORWARD = "forward"
    BACKWARD = "backward"


@dataclass(frozen=True, slots=True)
class LayerTable:
    """What one layer may choose, every array over its strategies.

    Attributes:
        strategies: all that the space allows and whose data degree divides the micro-batch.
        layouts: index of each strategy's layout in the tables' list.
        forward: seconds per micro-batch.
        backward: seconds per micro-batch.
        sync: seconds per step.
        optimizer: seconds per step.
        state: bytes.
        activation: bytes per micro-batch in flight.
        late: bytes of the state that exist from the first backward pass to the end of the step.
        transient: bytes while it computes.
        gathered: bytes while the layer behind it is in its backward pass.
    """

    strategies: tuple[LayerStrategy, ...]
    layouts: Integers
    forward: Floats
    backward: Floats
    sync: Floats
    optimizer: Floats
    state: Integers
    activation: Integers
    late: Integers
    transient: Integers
    gathered: Integers

    @property
    def size(self) -> int:
        """Number of strategies."""
        return len(self.strategies)


@dataclass(frozen=True, slots=True)
class BoundaryTable:
    """What lies in front of a layer, by the layouts before and after: (A, A), or by the layout before: (A,).

    Attributes:
        forward: seconds per micro-batch of the change of layout.
        backward: seconds per micro-batch of the change of layout.
        transient: bytes while rows move.
        hop: per stage index, seconds of one transfer between a stage that ends before the layer and the next, (A,).
        entry: per stage index, bytes of what a stage that starts with the layer receives, (A, A).
        exit: per stage index, bytes of what a stage that ends before the layer has sent, (A,).
    """

    forward: Floats
    backward: Floats
    transient: Integers
    hop: tuple[Floats, ...]
    entry: tuple[Integers, ...]
    exit: tuple[Integers, ...]


@dataclass(frozen=True, slots=True)
class Tables:
    """Everything that decides the price of a plan with one split and one pipeline degree.

    Attributes:
        problem: what is planned.
        split: batch and micro-batches.
        num_stages: the pipeline degree.
        layouts: every layout that some strategy has.
        layers: one table a layer.
        boundaries: in front of every layer; the first one is never crossed.
        in_flight: micro-batches that each stage holds.
        room_bytes: device memory without the reserve.
    """

    problem: PlanningProblem
    split: BatchSplit
    num_stages: int
    layouts: tuple[Layout, ...]
    layers: tuple[LayerTable, ...]
    boundaries: tuple[BoundaryTable, ...]
    in_flight: tuple[int, ...]
    room_bytes: int

    def kept(self, layer: LayerTable, stage_index: int) -> Integers:
        """What a layer keeps by strategy at its stage's fullest moment.

        With a micro-batch to come after the first backward pass that is everything. Without one, the last of the
        activations and the late gradients are there one after the other.
        """
        held = self.in_flight[stage_index]
        if held < self.split.num_micro_batches:
            return layer.state + held * layer.activation
        return layer.state - layer.late + (held - 1) * layer.activation + np.maximum(layer.activation, layer.late)


def every_split(batch: BatchRange) -> Iterator[BatchSplit]:
    """List every batch size and number of micro-batches."""
    for size in batch.sizes:
        for number in range(1, size + 1):
            if size % number == 0:
                yield BatchSplit(size, number)


def every_table(problem: PlanningProblem, prices: PriceList) -> Iterator[Tables]:
    """Build the tables of every split and pipeline degree in which each layer has a strategy."""
    for degree in pipeline_degrees(problem.cluster, problem.limits, len(families.layers(problem.model))):
        for split in every_split(problem.batch):
            built = tables(problem, prices, split=split, num_stages=degree)
            if built is not None:
                yield built


def tables(problem: PlanningProblem, prices: PriceList, *, split: BatchSplit, num_stages: int) -> Tables | None:
    """Build the tables of one split and pipeline degree; None when some layer has no strategy."""
    layers = families.layers(problem.model)
    num_devices, size = problem.cluster.num_devices // num_stages, split.micro_batch_size
    spaces = {layer: space.strategies(num_devices, problem.limits, layer).strategies for layer in dict.fromkeys(layers)}
    fitting = {layer: tuple(s for s in some if size % s.data_degree == 0) for layer, some in spaces.items()}
    if not all(fitting.values()):
        return None
    layouts = tuple(sorted({strategy.layout for some in fitting.values() for strategy in some}))
    held = [
        in_flight(
            problem.limits.schedule, stage_index=k, num_stages=num_stages, num_micro_batches=split.num_micro_batches
        )
        for k in range(num_stages)
    ]
    built = {layer: _layer_table(prices, layer, some, layouts, size) for layer, some in fitting.items()}
    boundaries = [
        _boundary_table(
            prices,
            layouts,
            arriving=prices.arriving_bytes(layer, size),
            leaving=prices.leaving_bytes(before, size),
            places=[
                StagePosition(size, number, number == split.num_micro_batches, layouts[0], feeds_next=True)
                for number in held
            ],
        )
        for before, layer in zip((layers[0], *layers[:-1]), layers, strict=True)
    ]
    return Tables(
        problem=problem,
        split=split,
        num_stages=num_stages,
        layouts=layouts,
        layers=tuple(built[layer] for layer in layers),
        boundaries=tuple(boundaries),
        in_flight=tuple(held),
        room_bytes=problem.cluster.device_memory_bytes - problem.profile.reserve_bytes,
    )


def finish(
    forward: Sequence[Floats], backward: Sequence[Floats], hops: Sequence[Floats], asked: Tables
) -> tuple[Floats, ...]:
    """Tell when each stage ends its last pass, for many plans at once: every argument one array a stage.

    What a stage receives starts on its way when both are ready, the stage that made it and the one that wants it.
    """
    last = asked.num_stages - 1
    free = [np.zeros_like(forward[0]) for _ in forward]
    ends: dict[tuple[Pass, int, int], Floats] = {}
    for k, direction, index in schedule_order(asked):
        if direction is Pass.FORWARD:
            arrived = np.maximum(free[k], ends[direction, k - 1, index]) + hops[k - 1] if k else free[k]
            free[k] = arrived + forward[k]
        else:
            arrived = np.maximum(free[k], ends[direction, k + 1, index]) + hops[k] if k < last else free[k]
            free[k] = arrived + backward[k]
        ends[direction, k, index] = free[k]
    return tuple(free)


def schedule_order(asked: Tables) -> Iterator[tuple[int, Pass, int]]:
    """Give every pass of every stage so that what a pass waits for comes first: stage, direction, micro-batch."""
    number, last = asked.split.num_micro_batches, asked.num_stages - 1
    waiting = [list(_stage_order(asked, k, number)) for k in range(asked.num_stages)]
    done: set[tuple[int, Pass, int]] = set()
    while any(waiting):
        for k, passes in enumerate(waiting):
            while passes:
                direction, index = passes[0]
                before = k - 1 if direction is Pass.FORWARD else k + 1
                if 0 <= before <= last and (before, direction, index) not in done:
                    break
                done.add((k, direction, index))
                passes.pop(0)
                yield k, direction, index


def _stage_order(asked: Tables, k: int, number: int) -> Iterator[tuple[Pass, int]]:
    """Give what a stage does: as many forward passes as it may have in flight, then one of each in turn."""
    ahead = in_flight(
        asked.problem.limits.schedule, stage_index=k, num_stages=asked.num_stages, num_micro_batches=number
    )
    for index in range(ahead):
        yield Pass.FORWARD, index
    for index in range(number):
        yield Pass.BACKWARD, index
        if index + ahead < number:
            yield Pass.FORWARD, index + ahead


def _layer_table(
    prices: PriceList, layer: LayerSpec, strategies: tuple[LayerStrategy, ...], layouts: tuple[Layout, ...], size: int
) -> LayerTable:
    costs = [prices.layer(layer, strategy, size) for strategy in strategies]
    return LayerTable(
        strategies=strategies,
        layouts=np.array([layouts.index(strategy.layout) for strategy in strategies]),
        forward=np.array([cost.forward_seconds for cost in costs]),
        backward=np.array([cost.backward_seconds for cost in costs]),
        sync=np.array([cost.sync_seconds for cost in costs]),
        optimizer=np.array([cost.optimizer_seconds for cost in costs]),
        state=np.array([cost.state_bytes for cost in costs]),
        activation=np.array([cost.activation_bytes for cost in costs]),
        late=np.array([cost.late_bytes for cost in costs]),
        transient=np.array([cost.transient_bytes for cost in costs]),
        gathered=np.array([cost.gathered_bytes for cost in costs]),
    )


def _boundary_table(
    prices: PriceList, layouts: tuple[Layout, ...], *, arriving: int, leaving: int, places: Sequence[StagePosition]
) -> BoundaryTable:
    costs = [[prices.transition(before, after, arriving) for after in layouts] for before in layouts]
    return BoundaryTable(
        forward=np.array([[cost.forward_seconds for cost in row] for row in costs]),
        backward=np.array([[cost.backward_seconds for cost in row] for row in costs]),
        transient=np.array([[cost.transient_bytes for cost in row] for row in costs]),
        hop=tuple(
            np.array([prices.hop_seconds(before, leaving, stage_index=k) for before in layouts])
            for k in range(len(places) - 1)
        ),
        entry=tuple(
            np.array(
                [
                    [prices.entry_bytes(replace(place, entry=before), after, arriving) for after in layouts]
                    for before in layouts
                ]
            )
            for place in places
        ),
        exit=tuple(np.array([prices.exit_bytes(place, before, leaving) for before in layouts]) for place in places),
    )
