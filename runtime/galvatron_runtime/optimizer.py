"""The optimizer and its learning rate, as the training specification asks for them."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from galvatron_planner.training import AdamW


class PiecewiseAdamW(torch.optim.AdamW):
    """AdamW over the pieces that this device holds; its state is split as the parameters are.

    The update is element by element, so nothing has to be known of other pieces. Given DTensors, the fused kernel of
    torch 2.13 first works out how all of them together may be split, looking at all others for each, at the first step
    of every attempt (docs/adr/0048-updates-by-pieces.md).
    """

    def _init_group(self, group: dict[str, Any], *lists: list[Tensor]) -> bool:
        """Collect what the kernel takes, as the base class does."""
        has_complex = bool(super()._init_group(group, *lists))  # type: ignore[no-untyped-call]  # of torch
        parameters, gradients, *_ = lists
        # Reductions leave gradients split as their parameters are; other pieces would be added in silence.
        assert all(map(split_alike, parameters, gradients))  # noqa: S101
        for tensors in lists:
            tensors[:] = [one.to_local() if isinstance(one, DTensor) else one for one in tensors]
        return has_complex


def make_optimizer(parameters: Iterable[nn.Parameter], settings: AdamW) -> torch.optim.AdamW:
    """Make the optimizer; fused, because the default is 20 times slower over DTensors (measured, CPU, torch 2.13)."""
    return PiecewiseAdamW(
        parameters,
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def set_learning_rate(optimizer: torch.optim.AdamW, settings: AdamW, step: int) -> None:
    """Set the rate of ``step`` (from 0): rising linearly over the warm-up, constant after it."""
    share = min(1.0, (step + 1) / max(1, settings.warmup_steps))
    for group in optimizer.param_groups:
        group["lr"] = settings.learning_rate * share


def split_alike(one: Tensor, other: Tensor) -> bool:
    """Whether every device holds the same piece of both."""
    if isinstance(one, DTensor) and isinstance(other, DTensor):
        return one.placements == other.placements
    return not isinstance(one, DTensor) and not isinstance(other, DTensor)
