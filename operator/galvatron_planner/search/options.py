"""The strategies of every layer as arrays: what the stage search adds up, compares and prunes.

Legend: O options of one layer, S states. A *state* is what the next layer must know about the one before: its layout,
and whether its parameters are gathered ahead of its backward pass.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from galvatron_planner.cost.prices import PriceList
from galvatron_planner.model import LayerSpec
from galvatron_planner.strategy import Dimension, LayerStrategy, Layout

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class LayerOptions:
    """What one layer may choose.

    Attributes:
        strategies: ordered by text, which breaks ties.
        state: of each strategy, (O,).
        seconds: of a whole step, (O,).
        forward_seconds: of one micro-batch, (O,).
        backward_seconds: of one micro-batch, (O,).
        sync_seconds: the part of ``seconds`` that reduces gradients, (O,).
        state_bytes: (O,), see :class:`~galvatron_planner.cost.layer.LayerCost`.
        activation_bytes: (O,).
        transient: (O,).
        ahead: bytes gathered ahead when the layer is in a state, (S,).
        slots: options that lead into each state, padded with O, (S, width).
    """

    strategies: tuple[LayerStrategy, ...]
    state: Integers
    seconds: Floats
    forward_seconds: Floats
    backward_seconds: Floats
    sync_seconds: Floats
    state_bytes: Integers
    activation_bytes: Integers
    transient: Integers
    ahead: Integers
    slots: Integers

    def kept(self, in_flight: int) -> Integers:
        """Bytes held with ``in_flight`` micro-batches between forward and backward, (O,)."""
        return self.state_bytes + in_flight * self.activation_bytes


@dataclass(frozen=True, slots=True)
class PipelineOptions:
    """What all layers may choose, for one number of devices a stage and one micro-batch size.

    Attributes:
        kinds: per layer of the model, its index in ``layers``.
        layers: per distinct layer.
        layouts: of the states, (S,).
        move_seconds: of a whole step, from a state's layout to another's, (S, S).
        move_bytes: working memory of that, (S, S).
        micro_batch_bytes: hidden activation of a whole micro-batch between two layers.
    """

    kinds: tuple[int, ...]
    layers: tuple[LayerOptions, ...]
    layouts: tuple[Layout, ...]
    move_seconds: Floats
    move_bytes: Integers
    micro_batch_bytes: int

    @property
    def is_empty(self) -> bool:
        """Tell whether some layer has nothing to choose from."""
        return any(not layer.strategies for layer in self.layers)

    @property
    def distinct_layouts(self) -> tuple[Layout, ...]:
        """Every layout that a layer may choose, in order."""
        return tuple(sorted(set(self.layouts)))


def pipeline_options(
    prices: PriceList,
    layers: Sequence[LayerSpec],
    candidates: Mapping[LayerSpec, tuple[LayerStrategy, ...]],
    *,
    micro_batch_size: int,
    num_micro_batches: int,
) -> PipelineOptions:
    """Price every strategy that can split the micro-batch."""
    distinct = tuple(dict.fromkeys(layers))
    fitting = {
        layer: tuple(s for s in candidates[layer] if micro_batch_size % s.data_degree == 0) for layer in distinct
    }
    states = sorted({_state(strategy) for chosen in fitting.values() for strategy in chosen})
    layouts = tuple(layout for layout, _ in states)
    moved = prices.micro_batch_bytes(layers[0], micro_batch_size)
    moves = [[prices.transition(before, after, moved) for after in layouts] for before in layouts]
    kinds = {layer: index for index, layer in enumerate(distinct)}
    shape = (len(layouts), len(layouts))
    seconds = [[num_micro_batches * move.seconds for move in row] for row in moves]
    transient = [[move.transient_bytes for move in row] for row in moves]
    return PipelineOptions(
        kinds=tuple(kinds[layer] for layer in layers),
        layers=tuple(
            _layer_options(prices, layer, fitting[layer], states, (micro_batch_size, num_micro_batches))
            for layer in distinct
        ),
        layouts=layouts,
        move_seconds=np.array(seconds, dtype=np.float64).reshape(shape),
        move_bytes=np.array(transient, dtype=np.int64).reshape(shape),
        micro_batch_bytes=moved,
    )


def _state(strategy: LayerStrategy) -> tuple[Layout, bool]:
    # What is gathered ahead follows from the layer and its tensor degree, and thereby from the layout.
    return strategy.layout, any(axis.dimension is Dimension.SHARDED_DATA for axis in strategy.axes)


def _layer_options(
    prices: PriceList,
    layer: LayerSpec,
    strategies: tuple[LayerStrategy, ...],
    states: list[tuple[Layout, bool]],
    split: tuple[int, int],
) -> LayerOptions:
    micro_batch_size, num_micro_batches = split
    costs = [prices.layer(layer, strategy, micro_batch_size) for strategy in strategies]
    state = _integers([states.index(_state(strategy)) for strategy in strategies])
    ahead = np.zeros(len(states), dtype=np.int64)
    ahead[state] = [cost.gathered_bytes for cost in costs]
    return LayerOptions(
        strategies=strategies,
        state=state,
        seconds=_floats([cost.step_seconds(num_micro_batches) for cost in costs]),
        forward_seconds=_floats([cost.forward_seconds for cost in costs]),
        backward_seconds=_floats([cost.backward_seconds for cost in costs]),
        sync_seconds=_floats([cost.sync_seconds for cost in costs]),
        state_bytes=_integers([cost.state_bytes for cost in costs]),
        activation_bytes=_integers([cost.activation_bytes for cost in costs]),
        transient=_integers([cost.transient_bytes for cost in costs]),
        ahead=ahead,
        slots=_slots(state, len(states)),
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
