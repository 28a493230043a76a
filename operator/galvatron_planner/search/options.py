"""The strategies of every layer as arrays: what the search adds up, compares and prunes.

Legend: O options of one layer, S states, A amounts of time. A *state* is what the next layer must know about the one
before: its layout, and whether its parameters are gathered ahead of its backward pass.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from galvatron_planner.cost.layer import LayerCost
from galvatron_planner.cost.prices import PriceList
from galvatron_planner.cost.transition import TransitionCost
from galvatron_planner.model import LayerSpec
from galvatron_planner.strategy import Dimension, LayerStrategy, Layout

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

FORWARD, BACKWARD, SYNC, OPTIMIZER = range(4)
"""The amounts of time that a stage has, the first two per micro-batch, the others per step."""


@dataclass(frozen=True, slots=True)
class LayerOptions:
    """What one layer may choose.

    Attributes:
        strategies: ordered by text, which breaks ties.
        state: of each strategy, (O,).
        seconds: by amount of time, (A, O).
        state_bytes: (O,), see :class:`~galvatron_planner.cost.layer.LayerCost`.
        activation_bytes: (O,).
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
    transient: Integers
    ahead: Integers
    slots: Integers
    leaving_bytes: int

    def kept(self, in_flight: int) -> Integers:
        """Bytes held with ``in_flight`` micro-batches between forward and backward, (O,)."""
        return self.state_bytes + in_flight * self.activation_bytes


@dataclass(frozen=True, slots=True)
class Moves:
    """Changes of layout between two layers.

    Attributes:
        seconds: by amount of time, from a state's layout to another's, (A, S, S).
        working: working memory of that, (S, S).
        payload: bytes on one device of what arrives in a state's layout, (S,).
    """

    seconds: Floats
    working: Integers
    payload: Integers


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
        self,
        prices: PriceList,
        model_layers: Sequence[LayerSpec],
        candidates: Mapping[LayerSpec, tuple[LayerStrategy, ...]],
        *,
        micro_batch_size: int,
    ) -> None:
        distinct = tuple(dict.fromkeys(model_layers))
        self._prices = prices
        self._moves: dict[int, Moves] = {}
        self.micro_batch_size = micro_batch_size
        costs = {layer: _undominated(prices, layer, candidates[layer], micro_batch_size) for layer in distinct}
        moved = sorted({prices.leaving_bytes(layer, micro_batch_size) for layer in model_layers[:-1]})
        needless = _needless_layouts(
            costs.values(), lambda one, other: [prices.transition(one, other, x) for x in moved]
        )
        costs = {
            layer: {strategy: cost for strategy, cost in own.items() if strategy.layout not in needless}
            for layer, own in costs.items()
        }
        states = sorted({_state(strategy) for chosen in costs.values() for strategy in chosen})
        self.layouts = tuple(layout for layout, _ in states)
        self.exits = tuple(sorted(set(self.layouts)))
        self.exit_of = _integers([self.exits.index(layout) for layout in self.layouts])
        self.kinds = tuple(distinct.index(layer) for layer in model_layers)
        self.layers = tuple(
            _layer_options(costs[layer], states, prices.leaving_bytes(layer, micro_batch_size)) for layer in distinct
        )

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

    def hop_seconds(self, before: int, *, stage_index: int) -> Floats:
        """Price one transfer between a stage whose last layer is of kind ``before`` and the next one, by exit."""
        moved = self.layers[before].leaving_bytes
        return _floats([self._prices.hop_seconds(layout, moved, stage_index=stage_index) for layout in self.exits])

    @cached_property
    def least_seconds(self) -> Floats:
        """Least amounts of time per layer of the model, whatever memory allows, (A, layers)."""
        least = np.array([layer.seconds.min(axis=1) for layer in self.layers])
        return np.asarray(least[list(self.kinds)].T)

    def least_weighted(self, weights: tuple[float, float, float, float], *, room: float) -> float:
        """Bound the weighted seconds of all layers together when they may keep ``room`` bytes, changes of layout free.

        By memory prices, as in ``guide.py``, with one micro-batch in flight; infinite when nothing fits.
        """
        counts = np.bincount(self.kinds, minlength=len(self.layers))
        seconds = [np.array(weights) @ layer.seconds for layer in self.layers]
        kept = [layer.kept(1) for layer in self.layers]
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
        costs = [[self._prices.transition(one, other, moved) for other in self.layouts] for one in self.layouts]
        shape = (len(self.layouts), len(self.layouts))
        seconds = np.zeros((4, *shape))
        seconds[FORWARD] = [[cost.forward_seconds for cost in row] for row in costs]
        seconds[BACKWARD] = [[cost.backward_seconds for cost in row] for row in costs]
        return Moves(
            seconds,
            np.array([[cost.transient_bytes for cost in row] for row in costs], dtype=np.int64).reshape(shape),
            _integers([moved // layout.data_degree for layout in self.layouts]),
        )


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


def _needless_layouts(
    costs: Iterable[Mapping[LayerStrategy, LayerCost]], moves: Callable[[Layout, Layout], list[TransitionCost]]
) -> set[Layout]:
    """Find layouts that another one with the same degrees replaces in any plan without making it slower or larger.

    Every layer can do in the other whatever it can do in this one, and changes from and to all third layouts cost no
    more. On equal links the order of the axes makes no difference, and all orders but one are needless.
    """
    by_layout = [_by_layout(own) for own in costs]
    left = sorted({layout for own in by_layout for layout in own})
    needless: set[Layout] = set()
    for layout in reversed(left):
        rivals = (o for o in left if o != layout and o not in needless and _degrees(o) == _degrees(layout))
        others = [other for other in left if other != layout and other not in needless]
        if any(_replaces(rival, layout, by_layout, others, moves) for rival in rivals):
            needless.add(layout)
    return needless


def _by_layout(costs: Mapping[LayerStrategy, LayerCost]) -> dict[Layout, list[tuple[bool, LayerCost]]]:
    found: dict[Layout, list[tuple[bool, LayerCost]]] = {}
    for strategy, cost in costs.items():
        layout, is_gathered = _state(strategy)
        found.setdefault(layout, []).append((is_gathered, cost))
    return found


def _degrees(layout: Layout) -> tuple[int, int]:
    return layout.data_degree, layout.tensor_degree


def _replaces(
    rival: Layout,
    layout: Layout,
    by_layout: Sequence[Mapping[Layout, list[tuple[bool, LayerCost]]]],
    others: Sequence[Layout],
    moves: Callable[[Layout, Layout], list[TransitionCost]],
) -> bool:
    for own in by_layout:
        for is_gathered, cost in own.get(layout, ()):
            if not any(kind == is_gathered and _matches(one, cost) for kind, one in own.get(rival, ())):
                return False
    thirds = [other for other in others if other != rival]
    pairs = [(moves(rival, t), moves(layout, t)) for t in thirds] + [
        (moves(t, rival), moves(t, layout)) for t in thirds
    ]
    return all(_moves_no_more(a, b) for some, more in pairs for a, b in zip(some, more, strict=True))


def _moves_no_more(one: TransitionCost, other: TransitionCost) -> bool:
    return (
        one.forward_seconds <= other.forward_seconds
        and one.backward_seconds <= other.backward_seconds
        and one.transient_bytes <= other.transient_bytes
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
    amounts = np.array([_amounts(cost) for cost in costs.values()]).reshape(-1, 8).T
    return LayerOptions(
        strategies=tuple(costs),
        state=state,
        seconds=amounts[:4],
        state_bytes=_integers([cost.state_bytes for cost in costs.values()]),
        activation_bytes=_integers([cost.activation_bytes for cost in costs.values()]),
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


def _integers(values: list[int]) -> Integers:
    return np.array(values, dtype=np.int64)


def _floats(values: list[float]) -> Floats:
    return np.array(values, dtype=np.float64)
