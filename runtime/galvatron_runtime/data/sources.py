"""What samples are drawn from: a text, or nothing at all."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from galvatron_planner.model import ModelSpec
from galvatron_runtime.data.draws import draws
from galvatron_runtime.data.objectives import image_batch, random_tokens, text_batch, window_length
from galvatron_runtime.data.samples import Batch


@dataclass(frozen=True, slots=True)
class TokenSamples:
    """Windows of a text of bytes.

    Attributes:
        tokens: the whole text, uint8 [T], mapped.
        model: what reads them.
        seed: of the places.
    """

    tokens: NDArray[np.uint8]
    model: ModelSpec
    seed: int

    def samples(self, step: int, first: int, last: int) -> Batch:
        """Read samples ``first`` to ``last`` (excluded) of the global batch of ``step``."""
        length = window_length(self.model)
        keys = draws(self.seed, step, np.arange(first, last))
        starts = keys % np.uint64(len(self.tokens) - length + 1)
        windows = self.tokens[starts.astype(np.int64)[:, None] + np.arange(length)]
        return text_batch(self.model, windows.astype(np.int64), keys)


@dataclass(frozen=True, slots=True)
class SyntheticSamples:
    """Tokens or images without meaning, drawn uniformly."""

    model: ModelSpec
    seed: int

    def samples(self, step: int, first: int, last: int) -> Batch:
        """Draw samples ``first`` to ``last`` (excluded) of the global batch of ``step``."""
        keys = draws(self.seed, step, np.arange(first, last))
        if self.model.image_size:
            return image_batch(self.model, keys)
        windows = random_tokens(self.model.vocabulary_size, window_length(self.model), keys)
        return text_batch(self.model, windows, keys)


Samples = TokenSamples | SyntheticSamples
