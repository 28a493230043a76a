"""Where samples come from: sample ``i`` of step ``n`` depends on the seed, ``n`` and ``i`` only, never on the plan.

There is nothing to save: a resumed run goes on with the very samples that the unbroken run would have seen.
"""

from pathlib import Path
from typing import assert_never

import numpy as np

from galvatron_planner.model import Model
from galvatron_planner.training import DataSource, ImageFolder, PythonDocs, SyntheticData, TextFiles, TokenFiles
from galvatron_runtime.data.images import open_images
from galvatron_runtime.data.objectives import targets_per_sample, window_length
from galvatron_runtime.data.samples import Batch
from galvatron_runtime.data.sources import (
    PrefetchedSamples,
    Samples,
    SyntheticSamples,
    TokenArray,
    TokenSamples,
    num_windows,
)
from galvatron_runtime.data.texts import BYTE_VOCABULARY, UnusableData, cut_file, describe, token_file
from galvatron_runtime.data.tokens import check_tokens, map_bare, map_tokens, token_files

__all__ = [
    "Batch",
    "PrefetchedSamples",
    "Samples",
    "SyntheticSamples",
    "TokenSamples",
    "UnusableData",
    "open_samples",
    "targets_per_sample",
]


def open_samples(source: DataSource, *, model: Model, seed: int, batch_size: int, directory: Path) -> Samples:
    """Make a data source ready to be read.

    Args:
        source: where tokens come from.
        model: how long samples are, and which tokens it knows.
        seed: of the data order.
        batch_size: samples of a step.
        directory: of this node; what is made of the source is kept there.

    Raises:
        UnusableData: when no sample can be drawn, before anything has started.
    """
    if isinstance(source, SyntheticData):
        return SyntheticSamples(model, seed)
    if bool(model.image_size) is not isinstance(source, ImageFolder):
        raise UnusableData(
            f"the model reads {'images' if model.image_size else 'text'}, which {describe(source)} is not",
            remedy="name data of its kind, or use synthetic data",
        )
    if isinstance(source, ImageFolder):
        return PrefetchedSamples(
            open_images(source, model=model, seed=seed, batch_size=batch_size, directory=directory)
        )
    files = _files(source, model, directory)
    if not any(num_windows(len(tokens), model) for tokens in files):
        raise UnusableData(
            f"{describe(source)} has at most {max(map(len, files))} tokens in a file,"
            f" a sample needs {window_length(model)}",
            remedy="add data, or shorten the sequence",
        )
    return PrefetchedSamples(TokenSamples(files, model, seed, batch_size))


def _files(source: PythonDocs | TextFiles | TokenFiles, model: Model, directory: Path) -> tuple[TokenArray, ...]:
    match source:
        case TokenFiles():
            files = token_files(source)
            check_tokens(source, files, model, directory)
            return tuple(map_tokens(path, source) for path in files)
        case TextFiles(tokenizer=str(tokenizer)):
            path = cut_file(source, tokenizer, directory, vocabulary_size=model.vocabulary_size)
            return (np.load(path, mmap_mode="r"),)
        case PythonDocs() | TextFiles():
            if model.vocabulary_size < BYTE_VOCABULARY:
                raise UnusableData(
                    f"the model knows {model.vocabulary_size} tokens, texts have {BYTE_VOCABULARY} (one per byte)",
                    remedy=f"set the vocabulary size to at least {BYTE_VOCABULARY}, or use synthetic data",
                )
            return (map_bare(token_file(source, directory), np.dtype(np.uint8)),)
        case _:
            assert_never(source)
