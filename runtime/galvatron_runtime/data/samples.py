"""Samples: rows of the global batch of a step."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of the global batch of a step.

    Attributes:
        inputs: what each layer that reads data is fed, in the order of these layers: token ids, int64 [rows, S], or
            images, float32 [rows, 3, side, side].
        targets: what the head is compared with: int64, [rows, S] tokens or [rows] classes.
    """

    inputs: tuple[Tensor, ...]
    targets: Tensor

    def to(self, device: torch.device) -> "Batch":
        """Copy the rows to a device, without waiting for it."""
        inputs = tuple(rows.to(device, non_blocking=True) for rows in self.inputs)
        return Batch(inputs, self.targets.to(device, non_blocking=True))
