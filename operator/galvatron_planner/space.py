"""The decision tree: every way to split one layer over the devices of its stage, and the rules that prune it.

Source: Galvatron (arXiv 2211.13878), section 3.2: the pipeline comes first and across the slowest links, which leaves
every stage an equal group of devices; below it, every ordered composition of distinct dimensions is a path of the tree.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

from galvatron_planner.dimensions import refusal
from galvatron_planner.model import LayerSpec
from galvatron_planner.problem import SearchDimension, SearchLimits
from galvatron_planner.strategy import Axis, Dimension, LayerStrategy, splits_the_batch

SEARCHED_AS: Mapping[Dimension, SearchDimension] = {
    Dimension.DATA: SearchDimension.DP,
    Dimension.SHARDED_GRADIENTS: SearchDimension.ZERO2,
    Dimension.SHARDED_DATA: SearchDimension.SDP,
    Dimension.TENSOR: SearchDimension.TP,
    Dimension.SEQUENCE_TENSOR: SearchDimension.TP,
}


@dataclass(frozen=True, slots=True)
class PruningRule:
    """Why the search leaves a strategy out.

    Attributes:
        name: short, for reports.
        reason: for people.
        removes: tells whether the rule applies.
    """

    name: str
    reason: str
    removes: Callable[[LayerSpec, LayerStrategy, SearchLimits], bool]


def mixes_data_dimensions(_layer: LayerSpec, strategy: LayerStrategy, _limits: SearchLimits) -> bool:
    """Tell whether a layer has several kinds of data parallelism at once."""
    return sum(splits_the_batch(axis.dimension) for axis in strategy.axes) > 1


def uses_an_excluded_dimension(_layer: LayerSpec, strategy: LayerStrategy, limits: SearchLimits) -> bool:
    """Tell whether the user's limits rule the strategy out by a dimension."""
    if strategy.checkpoint and not limits.allows(SearchDimension.CKPT):
        return True
    return any(not limits.allows(SEARCHED_AS[axis.dimension]) for axis in strategy.axes)


def exceeds_the_tensor_degree(_layer: LayerSpec, strategy: LayerStrategy, limits: SearchLimits) -> bool:
    """Tell whether the strategy splits tensors more often than the user allows."""
    return strategy.tensor_degree > limits.max_tensor_degree


def is_refused_by_the_layer(layer: LayerSpec, strategy: LayerStrategy, _limits: SearchLimits) -> bool:
    """Tell whether the layer cannot run so, for instance because its heads do not divide."""
    return refusal(layer, strategy) is not None


PRUNING_RULES: tuple[PruningRule, ...] = (
    PruningRule(
        "dp-and-fsdp",
        "sharding alone is never worse than replicating and sharding one layer (Galvatron, takeaway 3)",
        mixes_data_dimensions,
    ),
    PruningRule("excluded", "the limits of the job leave the dimension out", uses_an_excluded_dimension),
    PruningRule("tensor-degree", "the limits of the job cap the tensor-parallel degree", exceeds_the_tensor_degree),
    PruningRule("layer", "the layer does not divide that way or gains nothing", is_refused_by_the_layer),
)


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """The strategies of one layer.

    Attributes:
        strategies: what is left, ordered by text.
        removed: strategies that each pruning rule removed, by the rule's name; the first rule that applies counts.
    """

    strategies: tuple[LayerStrategy, ...]
    removed: tuple[tuple[str, int], ...]


def strategies(num_devices: int, limits: SearchLimits, layer: LayerSpec) -> SearchSpace:
    """List what the search may choose for ``layer`` on a stage of ``num_devices`` devices."""
    kept = []
    removed = dict.fromkeys((rule.name for rule in PRUNING_RULES), 0)
    for strategy in compositions(num_devices, sequence_parallel=limits.sequence_parallel):
        rule = next((r for r in PRUNING_RULES if r.removes(layer, strategy, limits)), None)
        if rule is None:
            kept.append(strategy)
        else:
            removed[rule.name] += 1
    return SearchSpace(tuple(sorted(kept, key=str)), tuple(removed.items()))


@cache
def compositions(num_devices: int, *, sequence_parallel: bool = False) -> tuple[LayerStrategy, ...]:
    """List every ordered composition of distinct dimensions over ``num_devices`` devices, with and without checkpoint.

    Degrees are powers of two, at least 2, and multiply to ``num_devices``. Sequence parallelism is a dimension of the
    tree only when it is asked for: it doubles what there is to price.
    """
    dimensions = frozenset(Dimension) - (frozenset() if sequence_parallel else {Dimension.SEQUENCE_TENSOR})
    return tuple(
        LayerStrategy(axes, checkpoint)
        for axes in _ordered_factorisations(num_devices, dimensions)
        for checkpoint in (False, True)
    )


def _ordered_factorisations(num_devices: int, dimensions: frozenset[Dimension]) -> tuple[tuple[Axis, ...], ...]:
    if num_devices == 1:
        return ((),)
    degrees = [2**k for k in range(1, num_devices.bit_length()) if 2**k <= num_devices]
    return tuple(
        (Axis(dimension, degree), *rest)
        for dimension in sorted(dimensions)
        for degree in degrees
        for rest in _ordered_factorisations(num_devices // degree, dimensions - {dimension})
    )
