"""``spec.model`` as the planner's model: a preset, fields with their defaults filled in, or layers of one's own."""

from typing import Any

from galvatron_operator.api.own import OwnFields
from galvatron_operator.api.spec import ModelFields
from galvatron_planner import presets
from galvatron_planner.errors import InvalidInput
from galvatron_planner.families import FAMILIES
from galvatron_planner.model import Family, Mlp, Model, ModelSpec, num_image_tokens
from galvatron_planner.own import OwnLayer, OwnModel, OwnParameter, data_of

IMAGE_FAMILIES = (Family.VIT, Family.SWIN)

TEXT_VOCABULARY = 256
"""Tokens of a text model that names no vocabulary: the bytes."""
IMAGE_CLASSES = 1000
"""Classes of an image model that names none: ImageNet's."""


def model_of(fields: ModelFields) -> Model:
    """Write the model with every default filled in.

    Raises:
        InvalidInput: when there is no such preset, or its length cannot be changed.
        ValueError: when fields contradict each other; ``checks.py`` has looked for missing ones.
    """
    if fields.preset is not None:
        return presets.preset(fields.preset, sequence_length=fields.sequence_length)
    if fields.own is not None:
        return _own(fields, fields.own)
    family, hidden, heads = fields.family, fields.hidden_size, fields.num_attention_heads
    if family is None or hidden is None or heads is None:
        raise InvalidInput("spec.model is incomplete", remedy="name a preset, or family and shape")
    is_image = family in IMAGE_FAMILIES
    # The planner's own defaults, where nothing is written.
    written: dict[str, Any] = {
        "head_size": fields.head_size,
        "rotary_base": fields.rotary_base,
        "tie_word_embeddings": fields.tie_word_embeddings,
    }
    return ModelSpec(
        family=family,
        hidden_size=hidden,
        num_layers=fields.num_layers or sum(fields.depths or ()),
        num_heads=heads,
        num_key_value_heads=fields.num_key_value_heads or heads,
        feed_forward_size=fields.feed_forward_size or default_feed_forward_size(family, hidden),
        sequence_length=fields.sequence_length
        or num_image_tokens(family, image_size=fields.image_size or 0, patch_size=fields.patch_size or 1),
        vocabulary_size=fields.vocabulary_size or (IMAGE_CLASSES if is_image else TEXT_VOCABULARY),
        num_decoder_layers=fields.num_decoder_layers or 0,
        decoder_sequence_length=fields.decoder_sequence_length or 0,
        image_size=fields.image_size or 0,
        patch_size=fields.patch_size or 0,
        depths=fields.depths or (),
        window_size=fields.window_size or 0,
        **{name: value for name, value in written.items() if value is not None},
    )


def _own(fields: ModelFields, own: OwnFields) -> OwnModel:
    """Give every layer what it gets from the one before and from the data."""
    described = [one for one in own.layers for _ in range(one.count)]
    size: dict[str, Any] = {
        "sequence_length": fields.sequence_length or 1,
        "vocabulary_size": fields.vocabulary_size or TEXT_VOCABULARY,
        "image_size": fields.image_size or 0,
    }
    first, last = data_of(**size)
    arriving = [(), *(one.outputs for one in described)]
    data = [first, *[None] * (len(described) - 2), last]
    layers = tuple(
        OwnLayer(
            function=own.function,
            inputs=inputs,
            data=reads,
            parameters=tuple(OwnParameter(**dict(parameter)) for parameter in one.parameters),
            **{name: value for name, value in one if name not in ("count", "parameters")},
        )
        for one, inputs, reads in zip(described, arriving, data, strict=False)
    )
    return OwnModel(layers=layers, **size)


def default_feed_forward_size(family: Family, hidden_size: int) -> int:
    """Inner width of the feed-forward part when the user names none.

    Four times the hidden size (Vaswani et al. 2017). Gated, 8/3 of it, which gives three matrices the parameters of
    the other families' two, rounded up to a multiple of 256 (Touvron et al. 2023: 4096 -> 11008).
    """
    if FAMILIES[family].mlp is Mlp.SWIGLU:
        return -(-8 * hidden_size // (3 * 256)) * 256
    return 4 * hidden_size
