"""A language model without attention, to show what a model of one's own looks like: docs/own-models.md.

Every block mixes neighbouring tokens by a causal convolution, and then widens each token by a gated feed-forward part,
which tensor parallelism can split.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY, HIDDEN, INNER, WIDTH, BLOCKS = 256, 128, 384, 8, 6


class Tokens(nn.Module):
    """Token ids [B, S] to vectors [B, S, H]."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, HIDDEN)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.table(tokens)


class Block(nn.Module):
    """[B, S, H] to [B, S, H]."""

    # How tensor parallelism cuts: rows of what widens, columns of what narrows. Everything else is whole everywhere.
    split_dims = {"gate.weight": 0, "up.weight": 0, "down.weight": 1}
    # Set before every pass: where split work begins, and where its partial results are summed.
    tensor_group: Any

    def __init__(self) -> None:
        super().__init__()
        self.mix_norm = nn.RMSNorm(HIDDEN, eps=1e-5)
        self.mix = nn.Conv1d(HIDDEN, HIDDEN, WIDTH, groups=HIDDEN)
        self.norm = nn.RMSNorm(HIDDEN, eps=1e-5)
        self.gate = nn.Linear(HIDDEN, INNER, bias=False)
        self.up = nn.Linear(HIDDEN, INNER, bias=False)
        self.down = nn.Linear(INNER, HIDDEN, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        past = F.pad(self.mix_norm(hidden).transpose(1, 2), (WIDTH - 1, 0))
        hidden = hidden + self.mix(past).transpose(1, 2)
        wide = self.tensor_group.enter(self.norm(hidden))
        return hidden + self.tensor_group.leave(self.down(F.silu(self.gate(wide)) * self.up(wide)))


class Scores(nn.Module):
    """[B, S, H] and the token after each [B, S] to the summed loss."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(HIDDEN, eps=1e-5)
        self.projection = nn.Linear(HIDDEN, VOCABULARY, bias=False)

    def forward(self, hidden: Tensor, targets: Tensor) -> Tensor:
        scores = self.projection(self.norm(hidden)).float()
        return F.cross_entropy(scores.flatten(0, 1), targets.flatten(), reduction="sum")


def layers() -> list[nn.Module]:
    """All layers in order: what `spec.model.own.function` names."""
    return [Tokens(), *(Block() for _ in range(BLOCKS)), Scores()]
