"""What samples are drawn from: files of tokens, images, or nothing at all."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from galvatron_planner.model import Model
from galvatron_runtime.data.draws import draws, in_epochs
from galvatron_runtime.data.images import ImageSamples
from galvatron_runtime.data.objectives import image_batch, random_tokens, text_batch, window_length, window_stride
from galvatron_runtime.data.samples import Batch

TokenArray = NDArray[np.unsignedinteger] | NDArray[np.signedinteger]


@dataclass(frozen=True)
class TokenSamples:
    """Windows of token files, every one once in an epoch, in an order of its own for each.

    Windows do not cross files; what is left at the end of a file is shorter than a window and never read. Nothing has
    to be saved: the order is a function of the seed and the epoch, and the place in it of the step.

    Attributes:
        files: tokens of each, [T], mapped; at least one holds a window.
        model: what reads them.
        seed: of the order.
        batch_size: samples of a step.
        offset: samples before step 0, counted from where the data begin; earlier steps may have been of another size,
            so that fewer came before a step than its number times the batch size, and this is negative.
    """

    files: tuple[TokenArray, ...]
    model: Model
    seed: int
    batch_size: int
    offset: int = 0

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """Windows of all files up to and with each."""
        return np.cumsum([num_windows(len(tokens), self.model) for tokens in self.files], dtype=np.int64)

    def samples(self, step: int, first: int, last: int) -> Batch:
        """Read samples ``first`` to ``last`` (excluded) of the global batch of ``step``."""
        rows = [self._window(number) for number in self.order(step, first, last)]
        return text_batch(self.model, np.stack(rows), draws(self.seed, step, np.arange(first, last)))

    def order(self, step: int, first: int, last: int) -> NDArray[np.int64]:
        """Tell which windows these samples are."""
        numbers = self.offset + step * self.batch_size + np.arange(first, last, dtype=np.int64)
        return in_epochs(numbers, int(self.ends[-1]), self.seed)

    def _window(self, number: np.int64) -> NDArray[np.int64]:
        file = int(np.searchsorted(self.ends, number, side="right"))
        start = (int(number) - (int(self.ends[file - 1]) if file else 0)) * window_stride(self.model)
        return self.files[file][start : start + window_length(self.model)].astype(np.int64)


def num_windows(num_tokens: int, model: Model) -> int:
    """Count the samples in a file of so many tokens."""
    return max(0, (num_tokens - window_length(model)) // window_stride(model) + 1)


class PrefetchedSamples:
    """Samples that a thread reads a step ahead, while the device computes.

    It has state because what a rank asks for in a step is known only from the step before.
    """

    def __init__(self, source: TokenSamples | ImageSamples) -> None:
        self.source = source
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="samples")
        self._step = 0
        self._reads: dict[tuple[int, int, int], Future[Batch]] = {}

    def moved(self, offset: int) -> "PrefetchedSamples":
        """Read from another place on: see :attr:`TokenSamples.offset`."""
        return PrefetchedSamples(replace(self.source, offset=offset))

    def samples(self, step: int, first: int, last: int) -> Batch:
        """Give samples ``first`` to ``last`` (excluded) of the global batch of ``step``, and begin with the next's."""
        if step != self._step:
            self._step = step
            self._reads = {rows: read for rows, read in self._reads.items() if rows[0] >= step}
        # Kept for the whole step: a rank with both ends of the model asks for the same rows twice.
        wanted = self._begin(step, first, last)
        self._begin(step + 1, first, last)
        return wanted.result()

    def _begin(self, step: int, first: int, last: int) -> Future[Batch]:
        rows = (step, first, last)
        if rows not in self._reads:
            self._reads[rows] = self._thread.submit(self.source.samples, *rows)
        return self._reads[rows]


@dataclass(frozen=True, slots=True)
class SyntheticSamples:
    """Tokens or images without meaning, drawn uniformly."""

    model: Model
    seed: int

    def moved(self, offset: int) -> "SyntheticSamples":  # noqa: ARG002 -- as sources with places do
        """Draw on: there are no places."""
        return self

    def samples(self, step: int, first: int, last: int) -> Batch:
        """Draw samples ``first`` to ``last`` (excluded) of the global batch of ``step``."""
        keys = draws(self.seed, step, np.arange(first, last))
        if self.model.image_size:
            return image_batch(self.model, keys)
        windows = random_tokens(self.model.vocabulary_size, window_length(self.model), keys)
        return text_batch(self.model, windows, keys)


Samples = PrefetchedSamples | SyntheticSamples
