# ruff: noqa: N803, N806  (tensor names end in their dims)
"""Layers that are no blocks: where data enters, where images shrink, and where the loss is made."""

import torch
import torch.nn.functional as F  # noqa: N812  (the name every torch program uses)
from torch import Tensor, nn

from galvatron_planner.model import Embedding, Head, Merge, Patches, Pooling, Positions
from galvatron_runtime.blocks.parts import (
    LayerModule,
    Linear,
    RmsNorm,
    Table,
    build_norm,
    local,
    own_rows,
    own_tokens,
    random_values,
)

IGNORED_TARGET = -100
"""A target of no class: what is predicted there does not count (torch's default)."""


def normed(norm: nn.Module | None, hidden_BSH: Tensor) -> Tensor:
    """Apply a norm where there is one."""
    if norm is None:
        return hidden_BSH
    result: Tensor = norm(hidden_BSH)
    return result


class EmbeddingLayer(LayerModule):
    """Token ids [B, S] to hidden vectors [B, S, H]; the vocabulary may be split."""

    def __init__(self, layer: Embedding) -> None:
        super().__init__(layer)
        self.vocabulary_size = layer.vocabulary_size
        hidden, learned = layer.hidden_size, layer.positions is Positions.LEARNED
        self.tokens = Table(rows=layer.vocabulary_size, columns=hidden)
        self.positions = Table(rows=layer.sequence_length, columns=hidden) if learned else None
        self.segments = Table(rows=layer.num_segments, columns=hidden) if layer.num_segments else None
        self.norm = build_norm(layer.norm, hidden, layer.norm_epsilon) if layer.norm else None

    def forward(self, tokens_BS: Tensor) -> Tensor:
        """Look tokens up, add positions and the first segment (samples have one), and normalise."""
        hidden_BSH = self.look_up(self.tokens, tokens_BS, self.vocabulary_size)
        if self.positions is not None:
            places_SH = local(self.positions.weight)[: tokens_BS.shape[1]]
            hidden_BSH = hidden_BSH + own_tokens(places_SH, self.tensor_group)
        if self.segments is not None:
            hidden_BSH = hidden_BSH + local(self.segments.weight)[0]
        return normed(self.norm, hidden_BSH)


class DecoderEmbeddingLayer(LayerModule):
    """The start of a decoder: its own tokens are looked up, and the encoder's output is normalised."""

    def __init__(self, layer: Embedding) -> None:
        super().__init__(layer)
        self.vocabulary_size = layer.vocabulary_size
        self.tokens = Table(rows=layer.vocabulary_size, columns=layer.hidden_size)
        self.memory_norm = RmsNorm(layer.hidden_size, layer.norm_epsilon)

    def forward(self, encoded_BMH: Tensor, tokens_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Give hidden vectors [B, S, H] of the decoder's tokens, and the memory [B, M, H]."""
        return self.look_up(self.tokens, tokens_BS, self.vocabulary_size), self.memory_norm(encoded_BMH)


class PatchesLayer(LayerModule):
    """Images [B, 3, side, side] to hidden vectors of their patches, row by row; every device computes all of it."""

    def __init__(self, layer: Patches) -> None:
        super().__init__(layer)
        self.side = round((layer.patch_values // 3) ** 0.5)
        self.projection = Linear(inputs=layer.patch_values, outputs=layer.hidden_size, bias=True)
        self.class_token = nn.Parameter(random_values(1, layer.hidden_size)) if layer.class_token else None
        learned = layer.positions is Positions.LEARNED
        self.positions = Table(rows=layer.sequence_length, columns=layer.hidden_size) if learned else None
        self.norm = build_norm(layer.norm, layer.hidden_size, layer.norm_epsilon) if layer.norm else None

    def forward(self, images: Tensor) -> Tensor:
        """Project every patch (its values ordered by channel, row, column), add class token and positions."""
        weight = local(self.projection.weight)
        patches_BPS = F.unfold(images.to(weight.dtype), kernel_size=self.side, stride=self.side)
        hidden_BSH = self.projection(patches_BPS.transpose(1, 2))
        if self.class_token is not None:
            first = local(self.class_token).expand(len(hidden_BSH), 1, -1)
            hidden_BSH = torch.cat((first, hidden_BSH), dim=1)
        if self.positions is not None:
            hidden_BSH = hidden_BSH + local(self.positions.weight)
        return normed(self.norm, hidden_BSH)


class MergeLayer(LayerModule):
    """Four neighbouring tokens to one: [B, S, H] to [B, S / 4, 2 H]; every device computes all of it.

    Source: Liu et al. 2021 (arXiv 2103.14030), section 3.1; the order of the four is that of the published weights.
    """

    def __init__(self, layer: Merge) -> None:
        super().__init__(layer)
        self.side = round(layer.sequence_length**0.5)
        self.norm = build_norm(layer.norm, 4 * layer.hidden_size, layer.norm_epsilon)
        self.reduction = Linear(inputs=4 * layer.hidden_size, outputs=2 * layer.hidden_size, bias=False)

    def forward(self, hidden_BSH: Tensor) -> Tensor:
        """Put squares of 2 x 2 tokens side by side (down first), normalise and project."""
        rows, tokens, width = hidden_BSH.shape
        grid = hidden_BSH.view(rows, self.side // 2, 2, self.side // 2, 2, width)
        squares = grid.permute(0, 1, 3, 4, 2, 5).reshape(rows, tokens // 4, 4 * width)
        merged: Tensor = self.reduction(self.norm(squares))
        return merged


class HeadLayer(LayerModule):
    """Final norm, projection and cross entropy: hidden [B, S, H] and targets to one summed loss.

    Targets are [B, S], or [B] where one vector of a sample is classified.
    """

    def __init__(self, layer: Head) -> None:
        super().__init__(layer)
        self.vocabulary_size, self.pooling = layer.vocabulary_size, layer.pooling
        hidden = layer.hidden_size
        self.is_scaled = layer.is_scaled
        self.transform = Linear(inputs=hidden, outputs=hidden, bias=layer.bias) if layer.transform else None
        self.norm = build_norm(layer.norm, hidden, layer.norm_epsilon)
        self.projection = Linear(inputs=hidden, outputs=layer.vocabulary_size, bias=layer.bias)

    def forward(self, hidden_BSH: Tensor, *rest: Tensor) -> Tensor:
        """Sum the cross entropy over this device's targets; a decoder's memory, if it comes along, ends here.

        The softmax is in FP32, or FP64 when the layer is.
        """
        scores = self.scores(hidden_BSH).flatten(0, -2)
        scores = scores if scores.dtype is torch.float64 else scores.float()
        targets = rest[-1].flatten()
        if self.tensor_group.size == 1:
            return F.cross_entropy(scores, targets, reduction="sum", ignore_index=IGNORED_TARGET)
        return self._split_cross_entropy(scores, targets)

    def scores(self, hidden_BSH: Tensor) -> Tensor:
        """Score classes: [B, S, V], or [B, V] of what is pooled; V is this device's part."""
        if self.transform is not None:
            hidden_BSH = F.gelu(self.transform(hidden_BSH))
        hidden = self._pool(self.norm(hidden_BSH))
        if self.is_scaled:
            hidden = hidden * hidden.shape[-1] ** -0.5
        (scores,) = self.expand(hidden, self.projection)
        return scores

    def _pool(self, hidden_BSH: Tensor) -> Tensor:
        match self.pooling:
            case Pooling.ALL:
                return hidden_BSH
            case Pooling.FIRST:
                # A view would keep all tokens.
                return hidden_BSH[:, 0].contiguous()
            case Pooling.MEAN:
                return hidden_BSH.mean(1)

    def _split_cross_entropy(self, scores: Tensor, targets: Tensor) -> Tensor:
        # Every device holds the scores of its part of the vocabulary: [B * S, V / size].
        group, counted = self.tensor_group, (targets != IGNORED_TARGET).to(scores.dtype)
        scores = scores - group.maximum(scores.detach().amax(-1)).unsqueeze(-1)
        columns, owned = own_rows(targets, self.vocabulary_size, scores.shape[1], group)
        chosen = scores.gather(1, columns.unsqueeze(1)).squeeze(1) * owned.to(scores.dtype)
        return ((group.total(scores.exp().sum(-1)).log() - group.total(chosen)) * counted).sum()
