"""Where samples come from: sample ``i`` of step ``n`` depends on the seed, ``n`` and ``i`` only, never on the plan.

Samples are windows at drawn places, so there are no epochs and nothing to save: a resumed run goes on with the very
samples that the unbroken run would have seen.
"""

from pathlib import Path

import numpy as np

from galvatron_planner.model import ModelSpec
from galvatron_planner.training import DataSource, SyntheticData
from galvatron_runtime.data.objectives import targets_per_sample, window_length
from galvatron_runtime.data.samples import Batch
from galvatron_runtime.data.sources import Samples, SyntheticSamples, TokenSamples
from galvatron_runtime.data.texts import BYTE_VOCABULARY, UnusableData, describe, token_file

__all__ = [
    "Batch",
    "Samples",
    "SyntheticSamples",
    "TokenSamples",
    "UnusableData",
    "open_samples",
    "targets_per_sample",
]


def open_samples(source: DataSource, *, model: ModelSpec, seed: int, directory: Path) -> Samples:
    """Make a data source ready to be read.

    Args:
        source: where tokens come from.
        model: how long samples are, and which tokens it knows.
        seed: of the data order.
        directory: of this node; token files are kept there.

    Raises:
        UnusableData: when no sample can be drawn, before anything has started.
    """
    if isinstance(source, SyntheticData):
        return SyntheticSamples(model, seed)
    if model.image_size:
        raise UnusableData(
            f"{describe(source)} is text, and the model reads images",
            remedy="use synthetic data: it has images as well",
        )
    if model.vocabulary_size < BYTE_VOCABULARY:
        raise UnusableData(
            f"the model knows {model.vocabulary_size} tokens, texts have {BYTE_VOCABULARY} (one per byte)",
            remedy=f"set the vocabulary size to at least {BYTE_VOCABULARY}, or use synthetic data",
        )
    path, needed = token_file(source, directory), window_length(model)
    if path.stat().st_size < needed:
        raise UnusableData(
            f"{describe(source)} has {path.stat().st_size} bytes, a sample needs {needed}",
            remedy="add text, or shorten the sequence",
        )
    return TokenSamples(np.memmap(path, dtype=np.uint8, mode="r"), model, seed)
