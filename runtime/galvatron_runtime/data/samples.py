"""Samples: rows of the global batch, and what they are drawn from."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from galvatron_runtime.data.draws import draws, mix


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of the global batch of a step.

    Attributes:
        inputs: what each layer that reads data is fed, in the order of these layers: token ids, int64 [rows, S].
        targets: what the head is compared with: int64 [rows, S].
    """

    inputs: tuple[Tensor, ...]
    targets: Tensor

    def to(self, device: torch.device) -> "Batch":
        """Copy the rows to a device, without waiting for it."""
        inputs = tuple(rows.to(device, non_blocking=True) for rows in self.inputs)
        return Batch(inputs, self.targets.to(device, non_blocking=True))


@dataclass(frozen=True, slots=True)
class TokenSamples:
    """Windows of a text of bytes.

    Attributes:
        tokens: the whole text, uint8 [T], mapped.
        sequence_length: tokens per sample.
        seed: of the places.
    """

    tokens: NDArray[np.uint8]
    sequence_length: int
    seed: int

    def samples(self, step: int, first: int, last: int) -> Batch:
        """Read samples ``first`` to ``last`` (excluded) of the global batch of ``step``.

        Returns:
            One input, whose targets are the tokens after each of its own.
        """
        places = len(self.tokens) - self.sequence_length
        starts = draws(self.seed, step, np.arange(first, last)) % np.uint64(places)
        window = np.arange(self.sequence_length + 1)
        return _shifted(self.tokens[starts.astype(np.int64)[:, None] + window])


@dataclass(frozen=True, slots=True)
class SyntheticSamples:
    """Tokens without meaning, drawn uniformly from the vocabulary."""

    vocabulary_size: int
    sequence_length: int
    seed: int

    def samples(self, step: int, first: int, last: int) -> Batch:
        """Draw samples; shapes as in :meth:`TokenSamples.samples`."""
        samples = draws(self.seed, step, np.arange(first, last))
        window = np.arange(self.sequence_length + 1, dtype=np.uint64)
        return _shifted(mix(samples[:, None] + window) % np.uint64(self.vocabulary_size))


Samples = TokenSamples | SyntheticSamples


def _shifted(tokens: NDArray[np.uint8] | NDArray[np.uint64]) -> Batch:
    """Split [rows, S + 1] into inputs and the targets one place further, [rows, S] each."""
    whole = torch.from_numpy(tokens.astype(np.int64))
    return Batch((whole[:, :-1].contiguous(),), whole[:, 1:].contiguous())
