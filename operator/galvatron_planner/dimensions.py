"""THE TABLE dimension -> rules: what a layer admits, and (for the cost model) what it shards and communicates."""

from typing import assert_never

from galvatron_planner.model import Block, Embedding, Head, LayerSpec
from galvatron_planner.strategy import Dimension, LayerStrategy


def refusal(layer: LayerSpec, strategy: LayerStrategy) -> str | None:
    """Say why a layer cannot run under a strategy, or None when it can."""
    if strategy.degree(Dimension.DATA) > 1 and strategy.degree(Dimension.SHARDED_DATA) > 1:
        return "one layer is either replicated or sharded over its data axis, not both"
    match layer:
        case Block():
            return _block_refusal(layer, strategy.tensor_degree)
        case Embedding() | Head():
            if strategy.checkpoint:
                return f"checkpointing the {layer.kind} saves nothing: it keeps little more than its input"
            if strategy.tensor_degree > layer.vocabulary_size:
                return f"vocabulary {layer.vocabulary_size} is smaller than tensor degree {strategy.tensor_degree}"
            return None
        case _:
            assert_never(layer)


def _block_refusal(layer: Block, tensor_degree: int) -> str | None:
    if layer.num_key_value_heads % tensor_degree:
        return f"{layer.num_key_value_heads} key-value heads are not divisible by tensor degree {tensor_degree}"
    if layer.feed_forward_size % tensor_degree:
        return f"feed-forward size {layer.feed_forward_size} is not divisible by tensor degree {tensor_degree}"
    return None
