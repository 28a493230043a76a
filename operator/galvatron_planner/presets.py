"""Models by name, with the source of every shape: those of the papers we are compared with, and well-known ones."""

from difflib import get_close_matches
from pathlib import Path

from pydantic import ValidationError

from galvatron_planner.documents import first_problem
from galvatron_planner.errors import InvalidInput
from galvatron_planner.huggingface import from_config
from galvatron_planner.model import Family, ModelSpec


def _text(  # noqa: PLR0913 -- the columns of a table
    family: Family,
    *,
    hidden: int,
    layers: int,
    heads: int,
    tokens: int,
    vocabulary: int,
    key_value_heads: int = 0,
    inner: int = 0,
    rotary_base: int = 10_000,
    decoder_layers: int = 0,
    decoder_tokens: int = 0,
) -> ModelSpec:
    return ModelSpec(
        family=family,
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_key_value_heads=key_value_heads or heads,
        feed_forward_size=inner or 4 * hidden,
        sequence_length=tokens,
        vocabulary_size=vocabulary,
        rotary_base=rotary_base,
        num_decoder_layers=decoder_layers,
        decoder_sequence_length=decoder_tokens,
    )


def _bert_huge(layers: int) -> ModelSpec:
    """Galvatron (arXiv 2211.13878): hidden 1280, sequence 512; heads and vocabulary as in its code."""
    return _text(Family.BERT, hidden=1280, layers=layers, heads=16, tokens=512, vocabulary=30_522)


def _t5_large(layers: int, *, decoder_tokens: int) -> ModelSpec:
    """Galvatron (arXiv 2211.13878): T5-Large of Raffel et al. 2020 with as many blocks on either side."""
    return _text(
        Family.T5,
        hidden=1024,
        layers=layers,
        heads=16,
        tokens=512,
        vocabulary=32_128,
        decoder_layers=layers,
        decoder_tokens=decoder_tokens,
    )


def _vit_huge(layers: int) -> ModelSpec:
    """Galvatron (arXiv 2211.13878): hidden 1280, 196 patches; ImageNet's 1,000 classes."""
    return ModelSpec(
        family=Family.VIT,
        hidden_size=1280,
        num_layers=layers,
        num_heads=16,
        num_key_value_heads=16,
        feed_forward_size=5120,
        sequence_length=196 + 1,
        vocabulary_size=1000,
        image_size=224,
        patch_size=16,
    )


def _swin_huge(third_stage: int) -> ModelSpec:
    """Galvatron (arXiv 2211.13878): hidden 320/640/1280/2560; heads and windows as in its code."""
    depths = (2, 2, third_stage, 2)
    return ModelSpec(
        family=Family.SWIN,
        hidden_size=320,
        num_layers=sum(depths),
        num_heads=8,
        num_key_value_heads=8,
        feed_forward_size=1280,
        sequence_length=56 * 56,
        vocabulary_size=1000,
        image_size=224,
        patch_size=4,
        depths=depths,
        window_size=7,
    )


PRESETS: dict[str, ModelSpec] = {
    "bert-huge-32": _bert_huge(32),
    "bert-huge-48": _bert_huge(48),
    "vit-huge-32": _vit_huge(32),
    "vit-huge-48": _vit_huge(48),
    "t5-large-32": _t5_large(16, decoder_tokens=512),
    "t5-large-48": _t5_large(24, decoder_tokens=512),
    # Galvatron-BMW (arXiv 2307.02031): an imbalanced T5, 512 tokens in the encoder and 4 in the decoder.
    "t5-512-4-32": _t5_large(16, decoder_tokens=4),
    "t5-512-4-48": _t5_large(24, decoder_tokens=4),
    "swin-huge-32": _swin_huge(26),
    "swin-huge-48": _swin_huge(42),
    # Galvatron-BMW (arXiv 2307.02031), in the shapes with which 12 x layers x hidden^2 makes their names;
    # heads of 128, sequence and vocabulary of Brown et al. 2020 (arXiv 2005.14165).
    "gpt3-15b": _text(Family.GPT, hidden=5120, layers=48, heads=40, tokens=2048, vocabulary=50_257),
    "gpt3-39b": _text(Family.GPT, hidden=8192, layers=48, heads=64, tokens=2048, vocabulary=50_257),
    "gpt3-65b": _text(Family.GPT, hidden=8192, layers=80, heads=64, tokens=2048, vocabulary=50_257),
    # Touvron et al. 2023 (arXiv 2307.09288, table 1) and the published config.json.
    "llama2-7b": _text(Family.LLAMA, hidden=4096, layers=32, heads=32, inner=11_008, tokens=4096, vocabulary=32_000),
    "llama2-13b": _text(Family.LLAMA, hidden=5120, layers=40, heads=40, inner=13_824, tokens=4096, vocabulary=32_000),
    "llama2-70b": _text(
        Family.LLAMA,
        hidden=8192,
        layers=80,
        heads=64,
        key_value_heads=8,
        inner=28_672,
        tokens=4096,
        vocabulary=32_000,
    ),
    # Grattafiori et al. 2024 (arXiv 2407.21783, table 3), at the 8,192 tokens of most of its pre-training.
    "llama3-8b": _text(
        Family.LLAMA,
        hidden=4096,
        layers=32,
        heads=32,
        key_value_heads=8,
        inner=14_336,
        tokens=8192,
        vocabulary=128_256,
        rotary_base=500_000,
    ),
    "llama3-70b": _text(
        Family.LLAMA,
        hidden=8192,
        layers=80,
        heads=64,
        key_value_heads=8,
        inner=28_672,
        tokens=8192,
        vocabulary=128_256,
        rotary_base=500_000,
    ),
    "llama3-405b": _text(
        Family.LLAMA,
        hidden=16_384,
        layers=126,
        heads=128,
        key_value_heads=8,
        inner=53_248,
        tokens=8192,
        vocabulary=128_256,
        rotary_base=500_000,
    ),
    # Jiang et al. 2023 (arXiv 2310.06825, table 1), at its sliding window: longer samples would see less.
    "mistral-7b": _text(
        Family.MISTRAL,
        hidden=4096,
        layers=32,
        heads=32,
        key_value_heads=8,
        inner=14_336,
        tokens=4096,
        vocabulary=32_000,
    ),
    # Yang et al. 2024 (arXiv 2412.15115, table 1 and section 3.3) and the published config.json.
    "qwen2.5-7b": _text(
        Family.QWEN2,
        hidden=3584,
        layers=28,
        heads=28,
        key_value_heads=4,
        inner=18_944,
        tokens=4096,
        vocabulary=152_064,
        rotary_base=1_000_000,
    ),
}
"""Models by the name that users write."""


def model_named(text: str, *, sequence_length: int | None = None) -> ModelSpec:
    """Find a preset, or read the ``config.json`` of a model.

    Args:
        text: the name of a preset, or the path of a file that ends in ``.json``.
        sequence_length: tokens per sample, instead of the preset's or the file's.

    Raises:
        InvalidInput: when there is no such preset or file, or the length does not suit the model.
    """
    if text.endswith(".json"):
        return from_config(Path(text), sequence_length=sequence_length)
    if text not in PRESETS:
        raise _unknown(text, ", or the path of a Hugging Face config.json")
    return preset(text, sequence_length=sequence_length)


def preset(name: str, *, sequence_length: int | None = None) -> ModelSpec:
    """Find a preset; arguments and errors as of :func:`model_named`."""
    model = PRESETS.get(name)
    if model is None:
        raise _unknown(name, "")
    try:
        return ModelSpec(**{**dict(model), "sequence_length": sequence_length or model.sequence_length})
    except ValidationError as error:
        raise InvalidInput(
            f"{name} cannot have {sequence_length} tokens per sample: {first_problem(error)}",
            remedy=f"leave the sequence length at {model.sequence_length}",
        ) from error


def _unknown(name: str, instead: str) -> InvalidInput:
    close = get_close_matches(name, PRESETS, n=3, cutoff=0.4) or tuple(PRESETS)
    return InvalidInput(f"there is no model named {name!r}", remedy=f"use {', '.join(close)}{instead}")
