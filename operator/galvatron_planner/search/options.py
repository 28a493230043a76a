"""The strategies of every layer as arrays: what the search adds up, compares and prunes.

Legend: O options of one layer, S states, A amounts of time. A *state* is what the next layer must know about the one
before: its layout, and whether its parameters are gathered ahead of its backward pass.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from galvatron_planner.cost.layer import LayerCost
from galvatron_planner.cost.prices import PriceList
from galvatron_planner.cost.transition import TransitionTable
from galvatron_planner.model import LayerSpec
from galvatron_planner.strategy import Dimension, LayerStrategy, Layout

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Number = TypeVar("Number", np.int64, np.float64)

_MovePrices = Callable[[tuple[Layout, ...]], Sequence[TransitionTable]]

FORWARD, BACKWARD, SYNC, OPTIMIZER = range(4)
"""The amounts of time that a stage has, the first two per micro-batch, the others per step."""


@dataclass(frozen=True)
class LayerOptions:
    """What one layer may choose; without slots, for what is worked out once.

    Attributes:
        strategies: ordered by text, which breaks ties.
        state: of each strategy, (O,).
        seconds: by amount of time, (A, O).
        state_bytes: (O,), see :class:`~galvatron_planner.cost.layer.LayerCost`.
        activation_bytes: (O,).
        reused_bytes: (O,).
        transient: (O,).
        ahead: bytes gathered ahead when the layer is in a state, (S,).
        slots: options that lead into each state, padded with O, (S, width).
        leaving_bytes: of a whole micro-batch to the next layer.
    """

    strategies: tuple[LayerStrategy, ...]
    state: Integers
    seconds: Floats
    state_bytes: Integers
    activation_bytes: Integers
    reused_bytes: Integers
    transient: Integers
    ahead: Integers
    slots: Integers
    leaving_bytes: int

    @cached_property
    def own_states(self) -> Integers:
        """States that some option leads into, rising."""
        return rising(self.state)

    def kept(self, in_flight: int, *, holds_all: bool) -> Integers:
        """Bytes held with ``in_flight`` micro-batches, maybe all of the step, (O,): ``LayerCost.kept_bytes``."""
        kept = self.state_bytes + in_flight * self.activation_bytes
        return kept - self.reused_bytes if holds_all else kept

    def least_kept(self, num_micro_batches: int) -> Integers:
        """Bound the bytes held by every option on any stage of any schedule, (O,): those of one micro-batch."""
        return self.kept(1, holds_all=num_micro_batches == 1)

    def restricted(self, kept: Flags, states: Flags) -> "LayerOptions":
        """Leave out options, (O,), and states, (S,)."""
        state = (np.cumsum(states) - 1)[self.state[kept]]
        return LayerOptions(
            strategies=tuple(s for s, stays in zip(self.strategies, kept, strict=True) if stays),
            state=state,
            seconds=self.seconds[:, kept],
            state_bytes=self.state_bytes[kept],
            activation_bytes=self.activation_bytes[kept],
            reused_bytes=self.reused_bytes[kept],
            transient=self.transient[kept],
            ahead=self.ahead[states],
            slots=_slots(state, int(states.sum())),
            leaving_bytes=self.leaving_bytes,
        )


@dataclass(frozen=True, slots=True)
class Moves:
    """Changes of layout between two layers.

    Attributes:
        seconds: by amount of time, from a state's layout to another's, (A, S, S).
        working: working memory of that, (S, S).
    """

    seconds: Floats
    working: Integers


class PipelineOptions:
    """What all layers may choose, for one number of devices a stage and one micro-batch size.

    Attributes:
        kinds: per layer of the model, its index in ``layers``.
        layers: per distinct layer.
        layouts: of the states, (S,).
        exits: every distinct layout, in order.
        exit_of: index in ``exits`` of each state's layout, (S,).
    """

    def __init__(
        self, prices: PriceList, kinds: tuple[int, ...], layers: tuple[LayerOptions, ...], layouts: tuple[Layout, ...]
    ) -> None:
        self._prices = prices
        self._moves: dict[int, Moves] = {}
        self._hops: dict[tuple[int, int], Floats] = {}
        self.kinds = kinds
        self.layers = layers
        self.layouts = layouts
        self.exits = tuple(sorted(set(layouts)))
        self.exit_of = _integers([self.exits.index(layout) for layout in layouts])

    @classmethod
    def of(
        cls,
        prices: PriceList,
        model_layers: Sequence[LayerSpec],
        candidates: Mapping[LayerSpec, tuple[LayerStrategy, ...]],
        *,
        micro_batch_size: int,
    ) -> Self:
        """List what can split the micro-batch and is not needless."""
        distinct = tuple(dict.fromkeys(model_layers))
        costs = {layer: _undominated(prices, layer, candidates[layer], micro_batch_size) for layer in distinct}
        moved = sorted({prices.leaving_bytes(layer, micro_batch_size) for layer in model_layers[:-1]})
        needless = _needless_layouts(costs.values(), lambda some: [prices.transitions(some, x) for x in moved])
        costs = {
            layer: {strategy: cost for strategy, cost in own.items() if strategy.layout not in needless}
            for layer, own in costs.items()
        }
        states = sorted({_state(strategy) for chosen in costs.values() for strategy in chosen})
        layers = [
            _layer_options(costs[layer], states, prices.leaving_bytes(layer, micro_batch_size)) for layer in distinct
        ]
        kinds = [distinct.index(layer) for layer in model_layers]
        return cls(prices, tuple(kinds), tuple(layers), tuple(layout for layout, _ in states))

    def restricted(self, kept: Sequence[Flags]) -> Self:
        """Leave out options; ``kept`` tells per distinct layer which stay, (O,)."""
        used = np.zeros(len(self.layouts), dtype=bool)
        for layer, flags in zip(self.layers, kept, strict=True):
            used[layer.state[flags]] = True
        layers = [layer.restricted(flags, used) for layer, flags in zip(self.layers, kept, strict=True)]
        layouts = tuple(layout for layout, stays in zip(self.layouts, used, strict=True) if stays)
        return type(self)(self._prices, self.kinds, tuple(layers), layouts)

    @property
    def is_empty(self) -> bool:
        """Tell whether some layer has nothing to choose from."""
        return any(not layer.strategies for layer in self.layers)

    def moves(self, before: int) -> Moves:
        """Give the changes of layout after a layer of kind ``before``."""
        moved = self.layers[before].leaving_bytes
        if moved not in self._moves:
            self._moves[moved] = self._moves_of(moved)
        return self._moves[moved]

    def payload(self, kind: int) -> Integers:
        """Bytes on one device of what leaves a layer in a state's layout, (S,)."""
        moved = self.layers[kind].leaving_bytes
        return _integers([moved // layout.num_slices for layout in self.layouts])

    def hop_seconds(self, before: int, *, stage_index: int) -> Floats:
        """Price one transfer between a stage whose last layer is of kind ``before`` and the next one, by exit."""
        moved = self.layers[before].leaving_bytes
        key = moved, self.pairs_behind(stage_index)
        if key not in self._hops:
            seconds = [self._prices.hop_seconds(layout, moved, stage_index=stage_index) for layout in self.exits]
            self._hops[key] = _floats(seconds)
        return self._hops[key]

    def pairs_behind(self, stage_index: int) -> int:
        """Tell how far apart the devices are that transfer between a stage and the next."""
        return self._prices.stage_pairs(self.exits[0].num_devices, stage_index).stride

    @cached_property
    def least_seconds(self) -> Floats:
        """Least amounts of time per layer of the model, whatever memory allows, (A, layers)."""
        least = np.array([layer.seconds.min(axis=1) for layer in self.layers])
        return np.asarray(least[list(self.kinds)].T)

    def least_weighted(
        self, weights: tuple[float, float, float, float], *, room: float, num_micro_batches: int
    ) -> float:
        """Bound the weighted seconds of all layers together when they may keep ``room`` bytes, changes of layout free.

        By memory prices, as in ``guide.py``; infinite when nothing fits.
        """
        counts = np.bincount(self.kinds, minlength=len(self.layers))
        seconds = [np.array(weights) @ layer.seconds for layer in self.layers]
        kept = [layer.least_kept(num_micro_batches) for layer in self.layers]
        if sum(int(count * own.min()) for count, own in zip(counts, kept, strict=True)) > room:
            return float("inf")
        scale = max(float(np.ptp(own)) / max(float(np.ptp(held)), 1.0) for own, held in zip(seconds, kept, strict=True))
        prices = np.concatenate([[0.0], scale * 2.0 ** np.arange(-12.0, 8.0, 0.5)])
        paid = sum(
            count * (own[:, None] + held[:, None] * prices[None, :]).min(axis=0)
            for count, own, held in zip(counts, seconds, kept, strict=True)
        )
        return float((paid - prices * room).max())

    def _moves_of(self, moved: int) -> Moves:
        table, of = self._prices.transitions(self.exits, moved), self.exit_of
        seconds = np.zeros((4, len(of), len(of)))
        seconds[FORWARD] = table.forward_seconds[of][:, of]
        seconds[BACKWARD] = table.backward_seconds[of][:, of]
        return Moves(seconds, table.transient_bytes[of][:, of])


def _undominated(
    prices: PriceList, layer: LayerSpec, strategies: tuple[LayerStrategy, ...], micro_batch_size: int
) -> dict[LayerStrategy, LayerCost]:
    """Price every strategy that can split the micro-batch; drop those that another of the same state matches."""
    costs = {s: prices.layer(layer, s, micro_batch_size) for s in strategies if micro_batch_size % s.data_degree == 0}
    rivals: dict[tuple[Layout, bool], list[LayerCost]] = {}
    for strategy, cost in costs.items():
        rivals.setdefault(_state(strategy), []).append(cost)
    return {
        strategy: cost
        for strategy, cost in costs.items()
        if not any(_matches(rival, cost) and rival != cost for rival in rivals[_state(strategy)])
    }


def _needless_layouts(costs: Iterable[Mapping[LayerStrategy, LayerCost]], moves: _MovePrices) -> set[Layout]:
    """Find layouts that another one with the same degrees replaces in any plan without making it slower or larger.

    Every layer can do in the other whatever it can do in this one, and changes from and to all third layouts cost no
    more. On equal links the order of the axes makes no difference, and all orders but one are needless.
    """
    by_layout = [_by_layout(own) for own in costs]
    left = sorted({layout for own in by_layout for layout in own})
    tables, stays = moves(tuple(left)), np.ones(len(left), dtype=bool)
    for index in reversed(range(len(left))):
        rivals = [i for i, o in enumerate(left) if i != index and stays[i] and _degrees(o) == _degrees(left[index])]
        if any(
            _does_all(left[rival], left[index], by_layout) and _moves_for(rival, index, stays, tables)
            for rival in rivals
        ):
            stays[index] = False
    return {layout for layout, one_stays in zip(left, stays, strict=True) if not one_stays}


def _by_layout(costs: Mapping[LayerStrategy, LayerCost]) -> dict[Layout, list[tuple[bool, LayerCost]]]:
    found: dict[Layout, list[tuple[bool, LayerCost]]] = {}
    for strategy, cost in costs.items():
        layout, is_gathered = _state(strategy)
        found.setdefault(layout, []).append((is_gathered, cost))
    return found


def _degrees(layout: Layout) -> tuple[int, int, int]:
    return layout.data_degree, layout.tensor_degree, layout.sequence_degree


def _does_all(
    rival: Layout, layout: Layout, by_layout: Sequence[Mapping[Layout, list[tuple[bool, LayerCost]]]]
) -> bool:
    """Tell whether every layer has in the rival a match for all it can do in a layout."""
    return all(
        any(kind == is_gathered and _matches(one, cost) for kind, one in own.get(rival, ()))
        for own in by_layout
        for is_gathered, cost in own.get(layout, ())
    )


def _moves_for(rival: int, index: int, stays: Flags, tables: Sequence[TransitionTable]) -> bool:
    """Tell whether changes between a rival and all third layouts cost no more than those of a layout."""
    thirds = stays.copy()
    thirds[[rival, index]] = False
    return all(
        bool((amounts[rival, thirds] <= amounts[index, thirds]).all())
        and bool((amounts[thirds, rival] <= amounts[thirds, index]).all())
        for table in tables
        for amounts in (table.forward_seconds, table.backward_seconds, table.transient_bytes)
    )


def _amounts(cost: LayerCost) -> tuple[float, ...]:
    return (
        cost.forward_seconds,
        cost.backward_seconds,
        cost.sync_seconds,
        cost.optimizer_seconds,
        cost.state_bytes,
        cost.activation_bytes,
        cost.transient_bytes,
        cost.gathered_bytes,
        cost.kept_bytes(1, holds_all=True),
    )


def _matches(one: LayerCost, other: LayerCost) -> bool:
    return all(a <= b for a, b in zip(_amounts(one), _amounts(other), strict=True))


def _state(strategy: LayerStrategy) -> tuple[Layout, bool]:
    # What is gathered ahead follows from the layer and its tensor degree, and thereby from the layout.
    return strategy.layout, any(axis.dimension is Dimension.SHARDED_DATA for axis in strategy.axes)


def _layer_options(
    costs: Mapping[LayerStrategy, LayerCost], states: list[tuple[Layout, bool]], leaving_bytes: int
) -> LayerOptions:
    state = _integers([states.index(_state(strategy)) for strategy in costs])
    ahead = np.zeros(len(states), dtype=np.int64)
    ahead[state] = [cost.gathered_bytes for cost in costs.values()]
    amounts = np.array([_amounts(cost) for cost in costs.values()]).reshape(-1, 9).T
    return LayerOptions(
        strategies=tuple(costs),
        state=state,
        seconds=amounts[:4],
        state_bytes=_integers([cost.state_bytes for cost in costs.values()]),
        activation_bytes=_integers([cost.activation_bytes for cost in costs.values()]),
        reused_bytes=_integers([cost.reused_bytes for cost in costs.values()]),
        transient=_integers([cost.transient_bytes for cost in costs.values()]),
        ahead=ahead,
        slots=_slots(state, len(states)),
        leaving_bytes=leaving_bytes,
    )


def _slots(state: Integers, num_states: int) -> Integers:
    into = [np.flatnonzero(state == index) for index in range(num_states)]
    width = max((len(options) for options in into), default=0)
    slots = np.full((num_states, max(width, 1)), len(state), dtype=np.int64)
    for index, options in enumerate(into):
        slots[index, : len(options)] = options
    return slots


def rising(values: NDArray[Number]) -> NDArray[Number]:
    """List distinct values, rising; ``np.unique`` takes several times as long for the short arrays of the search."""
    ordered = np.sort(values, axis=None)
    return ordered[np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))] if len(ordered) else ordered


def _integers(values: list[int]) -> Integers:
    return np.array(values, dtype=np.int64)


def _floats(values: list[float]) -> Floats:
    return np.array(values, dtype=np.float64)
