# ruff: noqa: N803, N806  (tensor names end in their dims)
"""Attention of a block's heads: positions, masks and windows around torch's fused kernel."""

from collections.abc import Sequence
from functools import lru_cache
from math import log

import torch
import torch.nn.functional as F  # noqa: N812  (the name every torch program uses)
from torch import Tensor, nn

from galvatron_planner.model import Attention, Block, Positions
from galvatron_planner.workload import DISTANCE_BUCKETS
from galvatron_runtime.blocks.parts import Table, local

MAX_DISTANCE = 128
"""Tokens further apart than this share a bucket (Raffel et al. 2020, arXiv 1910.10683, section 2.1)."""


class PlainAttention(nn.Module):
    """Tokens of a text see those before them, or all; queries and keys may be turned by their places."""

    def __init__(self, layer: Block) -> None:
        super().__init__()
        self.is_causal = layer.attention is Attention.CAUSAL
        self.rotary_base = layer.rotary_base if layer.positions is Positions.ROTARY else None

    def forward(self, query_BNSD: Tensor, key_BNSD: Tensor, value_BNSD: Tensor) -> Tensor:
        """Mix values: [B, N, S, D]; keys and values may have fewer heads."""
        if self.rotary_base is not None:
            query_BNSD, key_BNSD = rotate(query_BNSD, self.rotary_base), rotate(key_BNSD, self.rotary_base)
        grouped = query_BNSD.shape[1] != key_BNSD.shape[1]
        return F.scaled_dot_product_attention(
            query_BNSD, key_BNSD, value_BNSD, is_causal=self.is_causal, enable_gqa=grouped
        )


class RelativeAttention(nn.Module):
    """Scores are not scaled, and have a number for the bucket of each distance added.

    Source: Raffel et al. 2020 (arXiv 1910.10683, section 2.1), and the code published with it.
    """

    def __init__(self, layer: Block, table: Table) -> None:
        super().__init__()
        self.is_causal = layer.attention is Attention.CAUSAL
        self._table = [table]  # in a list, so that it stays a parameter of the block alone

    def forward(self, query_BNSD: Tensor, key_BNSD: Tensor, value_BNSD: Tensor) -> Tensor:
        """Mix values: [B, N, S, D]."""
        buckets_SS = distance_buckets(query_BNSD.shape[-2], self.is_causal, query_BNSD.device)
        mask_NSS = F.embedding(buckets_SS, local(self._table[0].weight)).permute(2, 0, 1)
        if self.is_causal:
            later_SS = torch.ones_like(buckets_SS, dtype=torch.bool).triu(1)
            mask_NSS = mask_NSS.masked_fill(later_SS, float("-inf"))
        return F.scaled_dot_product_attention(query_BNSD, key_BNSD, value_BNSD, attn_mask=mask_NSS, scale=1.0)


class WindowAttention(nn.Module):
    """Tokens of an image see those of their window, with a number for each offset added to the scores.

    Shifted windows lie half a window further down and right; what the image's edges separate does not see each other.

    Source: Liu et al. 2021 (arXiv 2103.14030), section 3.2.
    """

    def __init__(self, layer: Block, table: Table, *, is_shifted: bool) -> None:
        super().__init__()
        self.side, self.window = round(layer.sequence_length**0.5), layer.window_size
        self.shift = self.window // 2 if is_shifted else 0
        self._table = [table]  # in a list, so that it stays a parameter of the block alone

    def forward(self, query_BNSD: Tensor, key_BNSD: Tensor, value_BNSD: Tensor) -> Tensor:
        """Mix values within windows of T tokens: [B, N, S, D]."""
        device = query_BNSD.device
        mask_NTT = F.embedding(window_offsets(self.window, device), local(self._table[0].weight)).permute(2, 0, 1)
        windows_BWNTD = [self._to_windows(x) for x in (query_BNSD, key_BNSD, value_BNSD)]
        # Torch's fused kernels take four dims, and a mask that is the same for all samples without copying it: windows
        # count as samples where they have the same mask, and as heads where each has its own.
        if self.shift:
            # [W, 1, T, T] for the W windows of an image.
            apart = shift_mask(self.side, self.window, self.shift, mask_NTT.dtype, device)
            mask, merged = (mask_NTT + apart).flatten(0, 1), (1, 2)
        else:
            mask, merged = mask_NTT, (0, 1)
        query, key, value = (x.flatten(*merged) for x in windows_BWNTD)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask.unsqueeze(0))
        return self._from_windows(mixed.view(windows_BWNTD[0].shape))

    def _to_windows(self, x_BNSD: Tensor) -> Tensor:
        """Cut the image: [B, N, S, D] to [B, W, N, T, D]."""
        rows, heads, _, size = x_BNSD.shape
        num, window = self.side // self.window, self.window
        grid = x_BNSD.reshape(rows, heads, self.side, self.side, size)
        if self.shift:
            grid = grid.roll((-self.shift, -self.shift), (2, 3))
        cut = grid.reshape(rows, heads, num, window, num, window, size).permute(0, 2, 4, 1, 3, 5, 6)
        return cut.reshape(rows, num**2, heads, window**2, size)

    def _from_windows(self, x_BWNTD: Tensor) -> Tensor:
        """Put the image together again: [B, W, N, T, D] to [B, N, S, D]."""
        rows, _, heads, _, size = x_BWNTD.shape
        num, window = self.side // self.window, self.window
        cut = x_BWNTD.reshape(rows, num, num, heads, window, window, size).permute(0, 3, 1, 4, 2, 5, 6)
        grid = cut.reshape(rows, heads, self.side, self.side, size)
        if self.shift:
            grid = grid.roll((self.shift, self.shift), (2, 3))
        return grid.reshape(rows, heads, self.side**2, size)


def rotate(x_BNSD: Tensor, base: int) -> Tensor:
    """Turn each pair (i, i + D/2) of a head by position times frequency i (Su et al. 2021, arXiv 2104.09864).

    The result lies in memory token by token, as what it is made of: attention then gives the same, and its heads need
    not be copied to be put together.
    """
    tables = _rotary_tables(tuple(x_BNSD.shape[-2:]), base, x_BNSD.dtype, x_BNSD.device)
    cosine, sine = (table.unsqueeze(1) for table in tables)
    first, second = x_BNSD.transpose(1, 2).chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1).transpose(1, 2)


@lru_cache(maxsize=8)
def _rotary_tables(shape: Sequence[int], base: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    length, head_size = shape
    exponents = torch.arange(0, head_size, 2, dtype=torch.float64, device=device) / head_size
    angles = torch.outer(torch.arange(length, dtype=torch.float64, device=device), float(base) ** -exponents)
    return angles.cos().to(dtype), angles.sin().to(dtype)


@lru_cache(maxsize=8)
def distance_buckets(length: int, is_causal: bool, device: torch.device) -> Tensor:  # noqa: FBT001 -- a cache's key
    """Number the bucket of every pair of places, [S, S]: half of them exact, half growing with the distance.

    Where tokens see both ways, each way has half of the buckets.
    """
    places = torch.arange(length, device=device)
    distance = places[:, None] - places[None, :]
    num_buckets = DISTANCE_BUCKETS if is_causal else DISTANCE_BUCKETS // 2
    first = torch.zeros_like(distance) if is_causal else (distance < 0) * num_buckets
    distance = distance.clamp(min=0) if is_causal else distance.abs()
    exact = num_buckets // 2
    growth = (distance.clamp(min=1) / exact).log() / log(MAX_DISTANCE / exact) * (num_buckets - exact)
    far = (exact + growth.long()).clamp(max=num_buckets - 1)
    return first + torch.where(distance < exact, distance, far)


@lru_cache(maxsize=8)
def window_offsets(window: int, device: torch.device) -> Tensor:
    """Number the offset of every pair of tokens in a window, [T, T], row by row of all offsets."""
    places = torch.cartesian_prod(*[torch.arange(window, device=device)] * 2)
    offset = places[:, None] - places[None, :] + window - 1
    return offset[..., 0] * (2 * window - 1) + offset[..., 1]


@lru_cache(maxsize=8)
def shift_mask(side: int, window: int, shift: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Separate what only meets in a window because the image was rolled: [W, 1, T, T], 0 or minus infinity."""
    along = torch.arange(side, device=device)
    region = (along >= side - window).long() + (along >= side - shift).long()
    regions = region[:, None] * 3 + region[None, :]
    num = side // window
    tokens = regions.view(num, window, num, window).permute(0, 2, 1, 3).reshape(num**2, window**2)
    apart = tokens[:, None, :, None] != tokens[:, None, None, :]
    return torch.zeros(apart.shape, dtype=dtype, device=device).masked_fill(apart, float("-inf"))
