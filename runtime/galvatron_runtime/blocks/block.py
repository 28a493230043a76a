# ruff: noqa: N803, N806  (tensor names end in their dims)
"""Transformer blocks: attention and feed-forward, each with norm and residual; heads and inner width may be split."""

from collections.abc import Callable, Mapping
from functools import partial

import torch.nn.functional as F  # noqa: N812  (the name every torch program uses)
from torch import Tensor, nn

from galvatron_planner.model import Block, Mlp, Positions
from galvatron_planner.workload import DISTANCE_BUCKETS
from galvatron_runtime.blocks.attention import PlainAttention, RelativeAttention, WindowAttention
from galvatron_runtime.blocks.parts import LayerModule, Linear, Table, build_norm

_ACTIVATIONS: Mapping[Mlp, Callable[[Tensor], Tensor]] = {
    Mlp.GELU: F.gelu,
    Mlp.GELU_TANH: partial(F.gelu, approximate="tanh"),
    Mlp.RELU: F.relu,
}
"""Of the feed-forward parts without a gate."""


class BlockLayer(LayerModule):
    """One block: [B, S, H] to [B, S, H]."""

    def __init__(self, layer: Block, *, is_shifted: bool = False) -> None:
        super().__init__(layer)
        self.head_size, self.post_norm, self.mlp = layer.head_size, layer.post_norm, layer.mlp
        self._add_attention(layer, is_shifted=is_shifted)
        self._add_feed_forward(layer)

    def _add_attention(self, layer: Block, *, is_shifted: bool) -> None:
        hidden, query_bias = layer.hidden_size, layer.bias or layer.query_bias
        self.attention_norm = build_norm(layer.norm, hidden, layer.norm_epsilon)
        self.query = Linear(inputs=hidden, outputs=layer.query_size, bias=query_bias)
        self.key = Linear(inputs=hidden, outputs=layer.key_value_size, bias=query_bias)
        self.value = Linear(inputs=hidden, outputs=layer.key_value_size, bias=query_bias)
        self.output = Linear(inputs=layer.query_size, outputs=hidden, bias=layer.bias)
        self.attention: nn.Module
        if layer.positions is not Positions.RELATIVE:
            self.attention = PlainAttention(layer)
        elif layer.window_size:
            self.relative_bias = Table(rows=(2 * layer.window_size - 1) ** 2, columns=layer.num_heads)
            self.attention = WindowAttention(layer, self.relative_bias, is_shifted=is_shifted)
        else:
            self.relative_bias = Table(rows=DISTANCE_BUCKETS, columns=layer.num_heads)
            self.attention = RelativeAttention(layer, self.relative_bias)

    def _add_feed_forward(self, layer: Block) -> None:
        hidden, inner = layer.hidden_size, layer.feed_forward_size
        self.mlp_norm = build_norm(layer.norm, hidden, layer.norm_epsilon)
        self.gate = Linear(inputs=hidden, outputs=inner, bias=layer.bias) if layer.mlp is Mlp.SWIGLU else None
        self.up = Linear(inputs=hidden, outputs=inner, bias=layer.bias)
        self.down = Linear(inputs=inner, outputs=hidden, bias=layer.bias)

    def forward(self, hidden_BSH: Tensor) -> Tensor:
        """Add attention, then the feed-forward part; norms come before, or after the sums."""
        if self.post_norm:
            hidden_BSH = self.attention_norm(hidden_BSH + self.attend(hidden_BSH))
            normed: Tensor = self.mlp_norm(hidden_BSH + self.feed_forward(hidden_BSH))
            return normed
        hidden_BSH = hidden_BSH + self.attend(self.attention_norm(hidden_BSH))
        return hidden_BSH + self.feed_forward(self.mlp_norm(hidden_BSH))

    def attend(self, x_BSH: Tensor) -> Tensor:
        """Let tokens look at each other."""
        mixed_BNSD = self.attention(*map(self.heads, self.expand(x_BSH, self.query, self.key, self.value)))
        return self.contract(self.output, mixed_BNSD.transpose(1, 2).flatten(2))

    def heads(self, x: Tensor) -> Tensor:
        """Tell heads apart: [B, S, N * D] to [B, N, S, D]."""
        return x.view(*x.shape[:-1], -1, self.head_size).transpose(1, 2)

    def feed_forward(self, x: Tensor) -> Tensor:
        """Widen, act, narrow: each token by itself."""
        if self.gate is not None:
            gate, up = self.expand(x, self.gate, self.up)
            return self.contract(self.down, F.silu(gate) * up)
        (up,) = self.expand(x, self.up)
        return self.contract(self.down, _ACTIVATIONS[self.mlp](up))


class DecoderBlockLayer(BlockLayer):
    """One block of a decoder: a second attention sees the encoder's output, which goes on beside the hidden vectors."""

    def __init__(self, layer: Block) -> None:
        LayerModule.__init__(self, layer)
        self.head_size, self.post_norm, self.mlp = layer.head_size, layer.post_norm, layer.mlp
        self._add_attention(layer, is_shifted=False)
        self._add_memory(layer)
        self._add_feed_forward(layer)

    def _add_memory(self, layer: Block) -> None:
        hidden, query_bias = layer.hidden_size, layer.bias or layer.query_bias
        self.memory_norm = build_norm(layer.norm, hidden, layer.norm_epsilon)
        self.memory_query = Linear(inputs=hidden, outputs=layer.query_size, bias=query_bias)
        self.memory_key = Linear(inputs=hidden, outputs=layer.key_value_size, bias=query_bias)
        self.memory_value = Linear(inputs=hidden, outputs=layer.key_value_size, bias=query_bias)
        self.memory_output = Linear(inputs=layer.query_size, outputs=hidden, bias=layer.bias)

    def forward(self, hidden_BSH: Tensor, memory_BMH: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Add attention, attention to the memory, then the feed-forward part; the memory goes on as it came."""
        hidden_BSH = hidden_BSH + self.attend(self.attention_norm(hidden_BSH))
        hidden_BSH = hidden_BSH + self.recall(self.memory_norm(hidden_BSH), memory_BMH)
        return hidden_BSH + self.feed_forward(self.mlp_norm(hidden_BSH)), memory_BMH

    def recall(self, x_BSH: Tensor, memory_BMH: Tensor) -> Tensor:
        """Let tokens look at the encoder's; scores are not scaled, and know no places."""
        (query,) = map(self.heads, self.expand(x_BSH, self.memory_query))
        key, value = map(self.heads, self.expand(memory_BMH, self.memory_key, self.memory_value))
        mixed_BNSD = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        return self.contract(self.memory_output, mixed_BNSD.transpose(1, 2).flatten(2))
