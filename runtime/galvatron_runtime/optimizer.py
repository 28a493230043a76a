"""The optimizer and its learning rate, as the training specification asks for them."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from galvatron_planner.training import AdamW


def make_optimizer(parameters: Iterable[nn.Parameter], settings: AdamW) -> torch.optim.AdamW:
    """Make the optimizer; fused, because the default is 20 times slower over DTensors (measured, CPU, torch 2.13)."""
    every = list(parameters)
    # One kernel takes either DTensors or plain tensors.
    groups = ([p for p in every if isinstance(p, DTensor)], [p for p in every if not isinstance(p, DTensor)])
    return torch.optim.AdamW(
        [{"params": group} for group in groups if group],
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
