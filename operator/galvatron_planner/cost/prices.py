"""Every price of one planning problem, worked out once: layers, changes of layout, and transfers between stages."""

from dataclasses import dataclass

from galvatron_planner.cluster import Group, stage_pairs
from galvatron_planner.cost import layer as layers
from galvatron_planner.cost import transition
from galvatron_planner.cost.layer import Conditions, LayerCost
from galvatron_planner.cost.transition import TransitionCost, TransitionTable
from galvatron_planner.model import LayerSpec
from galvatron_planner.problem import PlanningProblem
from galvatron_planner.profiles import Collective
from galvatron_planner.strategy import LayerStrategy, Layout
from galvatron_planner.workload import input_bytes, output_bytes


@dataclass(frozen=True, slots=True)
class StageCost:
    """One stage under given strategies.

    Attributes:
        forward_seconds: one micro-batch, changes of layout included.
        backward_seconds: one micro-batch, changes of layout included.
        sync_seconds: once per step, gradient reduction that sticks out.
        optimizer_seconds: once per step.
        peak_bytes: upper bound of device memory, without the reserve.
        exit_layout: how the stage's output lies on its devices.
    """

    forward_seconds: float
    backward_seconds: float
    sync_seconds: float
    optimizer_seconds: float
    peak_bytes: int
    exit_layout: Layout


@dataclass(frozen=True, slots=True)
class StagePosition:
    """Where a stage stands in its pipeline, as far as its price depends on it.

    Attributes:
        micro_batch_size: samples of one micro-batch over all devices of the stage.
        in_flight: micro-batches whose activations it holds at most.
        holds_all: whether those are all of the step.
        entry: layout in which the previous stage sends, absent on the first stage.
        feeds_next: whether another stage follows.
    """

    micro_batch_size: int
    in_flight: int
    holds_all: bool
    entry: Layout | None
    feeds_next: bool


class PriceList:
    """Prices under the conditions of one problem; it has state because prices are asked for again and again."""

    def __init__(self, conditions: Conditions) -> None:
        self.conditions = conditions
        self._layers: dict[tuple[LayerSpec, LayerStrategy, int], LayerCost] = {}
        self._tables: dict[tuple[tuple[Layout, ...], int], TransitionTable] = {}
        self._pairs: dict[tuple[int, int], Group] = {}
        self._transitions: dict[tuple[Layout, Layout, int], TransitionCost] = {}

    @classmethod
    def of(cls, problem: PlanningProblem) -> "PriceList":
        """Start the price list of a problem."""
        cluster = problem.cluster
        return cls(
            Conditions(
                problem.profile,
                problem.precision,
                cluster.device_kind,
                devices_per_node=cluster.devices_per_node,
                num_devices=cluster.num_devices,
            )
        )

    def layer(self, layer: LayerSpec, strategy: LayerStrategy, micro_batch_size: int) -> LayerCost:
        """Price a layer."""
        key = (layer, strategy, micro_batch_size)
        if key not in self._layers:
            self._layers[key] = layers.price(
                layer, strategy, micro_batch_size=micro_batch_size, conditions=self.conditions
            )
        return self._layers[key]

    def transition(self, before: Layout, after: Layout, micro_batch_bytes: int) -> TransitionCost:
        """Price a change of layout between neighbours."""
        key = (before, after, micro_batch_bytes)
        if key not in self._transitions:
            self._transitions[key] = transition.price(
                before, after, micro_batch_bytes=micro_batch_bytes, profile=self.conditions.profile
            )
        return self._transitions[key]

    def transitions(self, layouts: tuple[Layout, ...], micro_batch_bytes: int) -> TransitionTable:
        """Price all changes between the layouts of a stage."""
        key = layouts, micro_batch_bytes
        if key not in self._tables:
            self._tables[key] = transition.price_all(
                layouts, micro_batch_bytes=micro_batch_bytes, profile=self.conditions.profile
            )
        return self._tables[key]

    def hop_seconds(self, exit_layout: Layout, micro_batch_bytes: int, *, stage_index: int) -> float:
        """Price one transfer between a stage and the next, in the layout of the former: each rank with its partner."""
        pairs = self.stage_pairs(exit_layout.num_devices, stage_index)
        link = self.conditions.profile.link(Collective.POINT_TO_POINT, pairs)
        return link.seconds(micro_batch_bytes // exit_layout.num_slices)

    def stage_pairs(self, num_devices: int, stage_index: int) -> Group:
        """Give the pairs over which a stage of so many devices and the next one transfer."""
        key = num_devices, stage_index
        if key not in self._pairs:
            self._pairs[key] = stage_pairs(
                stage_index, devices_per_stage=num_devices, devices_per_node=self.conditions.devices_per_node
            )
        return self._pairs[key]

    def arriving_bytes(self, layer: LayerSpec, micro_batch_size: int) -> int:
        """Bytes of everything that a whole micro-batch brings into a layer."""
        return micro_batch_size * input_bytes(layer, self.conditions.precision)

    def leaving_bytes(self, layer: LayerSpec, micro_batch_size: int) -> int:
        """Bytes of everything that a whole micro-batch hands on to the next layer."""
        return micro_batch_size * output_bytes(layer, self.conditions.precision)

    def entry_bytes(self, position: StagePosition, first: Layout, micro_batch_bytes: int) -> int:
        """Bytes of what the previous stage sends.

        One payload on its way; and where the first layer wants another layout, what was received stays beside it for
        every micro-batch in flight.
        """
        if position.entry is None:
            return 0
        payloads = 1 if first == position.entry else 1 + position.in_flight
        return payloads * (micro_batch_bytes // position.entry.num_slices)

    def exit_bytes(self, position: StagePosition, exit_layout: Layout, micro_batch_bytes: int) -> int:
        """Bytes of the outputs that wait for their gradients, one per micro-batch in flight, and of one gradient."""
        if not position.feeds_next:
            return 0
        return (position.in_flight + 1) * (micro_batch_bytes // exit_layout.num_slices)

    def stage(
        self, stage_layers: tuple[LayerSpec, ...], strategies: tuple[LayerStrategy, ...], position: StagePosition
    ) -> StageCost:
        """Price a stage whose strategies are given.

        The peak adds what is kept by all layers to the largest transient of one layer; a ``fsdp`` neighbour in front
        is gathered ahead of its own backward pass and counts with the layer behind it.
        """
        size = position.micro_batch_size
        costs = [self.layer(one, strategy, size) for one, strategy in zip(stage_layers, strategies, strict=True)]
        layouts = [strategy.layout for strategy in strategies]
        before = [position.entry or layouts[0], *layouts[:-1]]
        arriving = [self.arriving_bytes(one, size) for one in stage_layers]
        moves = [self.transition(*move) for move in zip(before, layouts, arriving, strict=True)]
        gathered = [0, *(cost.gathered_bytes for cost in costs[:-1])]
        transient = max(
            max(cost.transient_bytes + ahead, move.transient_bytes)
            for cost, ahead, move in zip(costs, gathered, moves, strict=True)
        )
        kept = sum(cost.kept_bytes(position.in_flight, holds_all=position.holds_all) for cost in costs)
        leaving = self.leaving_bytes(stage_layers[-1], size)
        boundaries = self.entry_bytes(position, layouts[0], arriving[0])
        boundaries += self.exit_bytes(position, layouts[-1], leaving)
        return StageCost(
            forward_seconds=sum(c.forward_seconds for c in costs) + sum(m.forward_seconds for m in moves),
            backward_seconds=sum(c.backward_seconds for c in costs) + sum(m.backward_seconds for m in moves),
            sync_seconds=sum(c.sync_seconds for c in costs),
            optimizer_seconds=sum(c.optimizer_seconds for c in costs),
            peak_bytes=kept + transient + boundaries,
            exit_layout=layouts[-1],
        )
