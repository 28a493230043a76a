"""What a model is trained to predict: how a window of tokens, or an image, becomes inputs and targets.

Every sample has equally many targets, so that the mean over a global batch needs no counting. What is drawn depends on
the sample's key alone.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from galvatron_planner.model import Family, Model, ModelSpec
from galvatron_runtime.blocks.ends import IGNORED_TARGET
from galvatron_runtime.data.draws import mix, numbers
from galvatron_runtime.data.samples import Batch

MASKED_SHARE = 0.15
"""Of the tokens of a sample are to be filled in (Devlin et al. 2019, arXiv 1810.04805, section 3.1)."""
START_TOKEN = 0
"""What a decoder sees before its first token; T5 takes its padding, the first of the vocabulary, as well."""


def window_length(model: Model) -> int:
    """Tokens of a text that a sample needs: the inputs and what follows them."""
    match model:
        case ModelSpec(family=Family.BERT):
            return model.sequence_length
        case ModelSpec(family=Family.T5):
            return model.sequence_length + model.decoder_sequence_length
        case _:
            return model.sequence_length + 1


def window_stride(model: Model) -> int:
    """Tokens between the starts of windows that follow each other: every token is an input once."""
    return window_length(model) if model.family in {Family.BERT, Family.T5} else model.sequence_length


def targets_per_sample(model: Model) -> int:
    """Predictions of a sample that count."""
    if model.image_size:
        return 1
    match model:
        case ModelSpec(family=Family.BERT):
            return max(1, round(MASKED_SHARE * model.sequence_length))
        case ModelSpec(family=Family.T5):
            return model.decoder_sequence_length
        case _:
            return model.sequence_length


def text_batch(model: Model, windows: NDArray[np.int64], keys: NDArray[np.uint64]) -> Batch:
    """Make inputs and targets of windows.

    Args:
        model: what is trained.
        windows: tokens, [rows, :func:`window_length`].
        keys: one for each row.
    """
    match model:
        case ModelSpec(family=Family.BERT):
            return _masked(model, windows, keys)
        case ModelSpec(family=Family.T5):
            return _continued(model, windows)
        case _:
            # The token after each.
            whole = torch.from_numpy(windows)
            return Batch((whole[:, :-1].contiguous(),), whole[:, 1:].contiguous())


def _masked(model: Model, windows: NDArray[np.int64], keys: NDArray[np.uint64]) -> Batch:
    """Hide tokens: of those to fill in 80 % become the mask, 10 % any other token, 10 % stay.

    The mask is the last token of the vocabulary.
    """
    draws = numbers(keys, model.sequence_length)
    chosen = np.argsort(draws, axis=1, kind="stable")[:, : targets_per_sample(model)]
    originals = np.take_along_axis(windows, chosen, axis=1)
    fate = mix(np.take_along_axis(draws, chosen, axis=1))
    share, other = fate % np.uint64(10), (fate // np.uint64(10)) % np.uint64(model.vocabulary_size)
    hidden = np.select([share < 8, share == 8], [model.vocabulary_size - 1, other.astype(np.int64)], originals)
    inputs, targets = windows.copy(), np.full_like(windows, IGNORED_TARGET)
    np.put_along_axis(inputs, chosen, hidden, axis=1)
    np.put_along_axis(targets, chosen, originals, axis=1)
    return Batch((torch.from_numpy(inputs),), torch.from_numpy(targets))


def _continued(model: ModelSpec, windows: NDArray[np.int64]) -> Batch:
    """Let the encoder read a text and the decoder go on with it (prefix language modelling).

    Source: Raffel et al. 2020 (arXiv 1910.10683), section 3.2.1, with the simplest of its objectives.
    """
    read, following = windows[:, : model.sequence_length], windows[:, model.sequence_length :]
    shifted = np.concatenate([np.full_like(following[:, :1], START_TOKEN), following[:, :-1]], axis=1)
    encoder, decoder = torch.from_numpy(read.copy()), torch.from_numpy(shifted)
    return Batch((encoder, decoder), torch.from_numpy(following.copy()))


def image_batch(model: Model, keys: NDArray[np.uint64]) -> Batch:
    """Draw images without meaning, and their classes."""
    classes = random_tokens(model.vocabulary_size, 1, keys)[:, 0]
    return Batch((random_images(model.image_size, keys),), torch.from_numpy(classes))


def random_images(side: int, keys: NDArray[np.uint64]) -> Tensor:
    """Draw images [rows, 3, side, side] of values between -1 and 1, each from its key."""
    values = numbers(keys, 3 * side**2)
    values_24_bits = (values >> np.uint64(40)).astype(np.float32)
    return torch.from_numpy(values_24_bits / np.float32(1 << 23) - 1).view(len(keys), 3, side, side)


def random_tokens(vocabulary_size: int, length: int, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Draw tokens [rows, length], each row from its key."""
    return (numbers(keys, length) % np.uint64(vocabulary_size)).astype(np.int64)
